package repack

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
)

// stubTries bounds how often an old name is given to a stub while the store loses the replies, each after the last one was
// settled by reading.
const stubTries = 5

// Config says how packs are written anew.
type Config struct {
	// Bucket has them. It repeats what may be repeated, see bucket.Retry.
	Bucket bucket.Bucket
	// Signer vouches for the fresh packs, as far as it may; the zero Signer does not.
	Signer trust.Signer
	// May is asked right before each old name is given to a stub: an error ends it all. Whoever collects looks there
	// whether another has taken over, and may have deleted the fresh pack since. nil is to go on.
	May func(ctx context.Context) error
	// PackSize is the size at which a fresh pack is closed, in bytes; 0 is pack.SizeTarget.
	PackSize int
	// Now dates the packs, nil is time.Now; Random names them, nil is crypto/rand.
	Now    func() time.Time
	Random io.Reader
	// Log receives what is worth telling an operator; nil discards it.
	Log *slog.Logger
}

func (cfg Config) withDefaults() Config {
	cfg.PackSize = cmp.Or(cfg.PackSize, pack.SizeTarget)
	cfg.Random = cmp.Or(cfg.Random, rand.Reader)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.May == nil {
		cfg.May = func(context.Context) error { return nil }
	}
	return cfg
}

// Written is what became of a group.
type Written struct {
	// Moved are the packs that are stubs now, each with the pack that has its frames; older stubs that lead there too.
	Moved map[pack.ID]pack.ID
	// Packs is how many fresh ones there are; Freed is what the bucket has less of, in bytes: negative where it has more.
	Packs int
	Freed int64
	Left  []Left
}

// Write copies what is alive of a group into fresh packs of its scope, as it is stored and in its order, and then gives
// each old name to a stub. All of an old pack goes into one fresh pack, whatever else that holds. A pack of which a frame
// that lives is damaged or missing stays as it is; so does one that is not among alive. Older stubs are made to name the
// fresh pack themselves. It may end anywhere, and be called again: the packs that are stubs by then are passed over. What
// it returns beside an error is what was done before. It takes the memory of a few packs.
func Write(ctx context.Context, cfg Config, g Group, alive Alive) (Written, error) {
	w := &writing{cfg: cfg.withDefaults(), group: g, alive: alive, reader: pack.NewReader(cfg.Bucket), out: Written{Moved: make(map[pack.ID]pack.ID)}}
	err := w.all(ctx)
	w.index(ctx)
	if err != nil {
		err = fmt.Errorf("write packs anew: %w", err)
	}
	return w.out, err
}

type writing struct {
	cfg    Config
	group  Group
	alive  Alive
	reader *pack.Reader

	w      *pack.Writer // the pack being filled, nil when none is
	filled []old        // what is in it
	packs  []index.Pack // of those that are in the bucket
	out    Written
}

// old is a pack whose frames are in a fresh one.
type old struct {
	id   pack.ID
	etag string
	size int64
}

func (w *writing) all(ctx context.Context) error {
	for _, id := range w.group.Packs {
		frames := w.alive[id]
		if frames == nil {
			continue
		}
		p, err := w.read(ctx, id, frames)
		if err == nil && p.Moved != "" {
			w.out.Moved[id] = p.Moved
			continue
		}
		if damaged(err) && ctx.Err() == nil {
			w.leave(id, err)
			continue
		}
		if err == nil {
			err = w.place(ctx, p)
		}
		if err != nil {
			return err
		}
	}
	return w.ship(ctx)
}

func damaged(err error) bool {
	return errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrInvalid)
}

func (w *writing) leave(id pack.ID, why error) {
	w.cfg.Log.Warn("a pack is not written anew", "pack", id, "error", why)
	w.out.Left = append(w.out.Left, Left{id, why})
}

// whole is a pack as it was read, with its frames that live.
type whole struct {
	*pack.Directory
	old
	object []byte
	live   []pack.Entry
	bytes  int // of live
}

func (w *writing) read(ctx context.Context, id pack.ID, frames Frames) (whole, error) {
	p, err := bucket.ReadChecked(ctx, w.cfg.Bucket, id.Key(), pack.SizeMax, func(b []byte, info bucket.Info) (whole, error) {
		d, err := w.reader.ParsePack(ctx, id, b)
		p := whole{Directory: d, old: old{id, info.ETag, info.Size}, object: b}
		if err == nil && d.Moved == "" {
			err = p.choose(w.reader, frames)
		}
		return p, err
	})
	switch {
	case err != nil || p.Moved != "":
	case len(p.live) == 0:
		err = fmt.Errorf("%w: nothing of it is alive: it is to be deleted", content.ErrInvalid)
	case pack.NewWriter(id, nil).Size(len(p.live), p.bytes) > pack.SizeMax:
		err = fmt.Errorf("%w: %d bytes of it are alive, too many for a fresh pack", content.ErrInvalid, p.bytes)
	}
	return p, err
}

// choose sets the frames that live, in their order: each is what it should be, and all are there that must be.
func (p *whole) choose(r *pack.Reader, frames Frames) error {
	found := make(map[content.CID]bool, len(frames))
	for _, e := range p.Entries {
		if _, lives := frames[e.CID]; !lives {
			continue
		}
		if err := r.CheckFrame(e.Extent, p.object); err != nil {
			return err
		}
		p.live, p.bytes = append(p.live, e), p.bytes+int(e.Length)
		found[e.CID] = true
	}
	for id, must := range frames {
		if must && !found[id] {
			return fmt.Errorf("%w: a map has object %s in pack %s, which does not list it", content.ErrCorrupt, id, p.id)
		}
	}
	return nil
}

// place copies what lives of a pack into the one that is being filled, or the next.
func (w *writing) place(ctx context.Context, p whole) error {
	if w.w != nil && w.w.Size(len(p.live), p.bytes) > w.cfg.PackSize {
		if err := w.ship(ctx); err != nil {
			return err
		}
	}
	if w.w == nil {
		fresh, err := pack.NewID(p.id.Scope(), w.cfg.Now(), w.cfg.Random)
		if err != nil {
			return err
		}
		w.w = pack.NewWriter(fresh, nil)
	}
	for _, e := range p.live {
		w.w.Add(e.Role, e.CID, int(e.Raw), e.Codec, p.object[e.Offset:e.End()])
	}
	w.filled = append(w.filled, p.old)
	return nil
}

// ship puts the pack that is filled, and then a stub under each of the old names. Killed before the Put, nothing was
// done; behind it, there is a pack that nothing names; behind a stub, those that follow are packs as they were.
func (w *writing) ship(ctx context.Context) error {
	if len(w.filled) == 0 {
		return nil
	}
	fresh, filled := w.w, w.filled
	w.w, w.filled = nil, nil
	s, err := fresh.Seal(pack.SignedBy(w.cfg.Signer, fresh.ID().Scope(), w.cfg.Now))
	if err != nil {
		return err
	}
	if err := pack.Store(ctx, w.cfg.Bucket, s); err != nil {
		return err
	}
	w.out.Packs++
	w.out.Freed -= int64(len(s.Bytes))
	if len(s.Signature) > 0 {
		w.packs = append(w.packs, index.Pack{ID: s.ID, Entries: slices.Clone(s.Directory), Signature: slices.Clone(s.Signature)})
	}
	for _, o := range filled {
		taker, err := w.stub(ctx, o, s.ID)
		if errors.Is(err, bucket.ErrPrecondition) || errors.Is(err, content.ErrNotFound) {
			w.leave(o.id, err)
			continue
		}
		if err != nil {
			return err
		}
		w.out.Moved[o.id] = taker
		if err := w.redirect(ctx, o.id, taker); err != nil {
			return err
		}
	}
	return nil
}

// stub gives the name of a pack to a stub, if it is what it was, and returns which pack that names: another where somebody
// else did so before. A lost reply is settled by reading.
func (w *writing) stub(ctx context.Context, o old, taker pack.ID) (pack.ID, error) {
	s := pack.NewWriter(o.id, nil).SealStub(taker)
	var err error
	for range stubTries {
		if err := w.cfg.May(ctx); err != nil {
			return "", err
		}
		if _, err = w.cfg.Bucket.Put(ctx, o.id.Key(), bucket.Bytes(s.Bytes), bucket.IfMatch(o.etag)); err == nil {
			w.out.Freed += o.size - int64(len(s.Bytes))
			return taker, nil
		}
		if !errors.Is(err, content.ErrUnavailable) && !errors.Is(err, bucket.ErrPrecondition) {
			break
		}
		d, readErr := w.reader.ReadDirectory(ctx, o.id)
		switch {
		case readErr != nil:
			return "", fmt.Errorf("leave a stub of pack %s: %w", o.id, errors.Join(readErr, err))
		case d.Moved != "":
			w.out.Freed += o.size - int64(len(s.Bytes))
			return d.Moved, nil
		case errors.Is(err, bucket.ErrPrecondition):
			return "", fmt.Errorf("leave a stub of pack %s: it was written again meanwhile: %w", o.id, err)
		}
	}
	return "", fmt.Errorf("leave a stub of pack %s: %w", o.id, err)
}

// redirect has the stubs that lead to a pack by its old name lead to the one that took over: chains stay short. Where
// another was at one of them, it leads there all the same.
func (w *writing) redirect(ctx context.Context, id, taker pack.ID) error {
	for _, before := range slices.Sorted(maps.Keys(w.group.Stubs)) {
		if w.group.Stubs[before] != id {
			continue
		}
		_, info, err := bucket.ReadAll(ctx, w.cfg.Bucket, before.Key(), pack.SizeMin)
		if errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNotFound) {
			continue // it is no stub
		}
		if err == nil {
			w.out.Moved[before], err = w.stub(ctx, old{before, info.ETag, info.Size}, taker)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// index tells importers of the fresh packs, so that they needn't read the directory of each.
func (w *writing) index(ctx context.Context) {
	if len(w.packs) == 0 {
		return
	}
	id, err := pack.NewID(w.packs[0].ID.Scope(), w.cfg.Now(), w.cfg.Random)
	if err == nil {
		err = index.Store(ctx, w.cfg.Bucket, id, w.packs)
	}
	if err != nil {
		w.cfg.Log.Warn("no index object of the fresh packs; imports read their footers instead", "packs", len(w.packs), "error", err)
	}
}
