package repack

import (
	"cmp"
	"context"
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

const (
	// stubTries bounds how often an old name is given to a stub while the store loses the replies, each after the last one
	// was settled by reading.
	stubTries = 5
	// freshTries bounds how often frames are put into a fresh pack, each after the last one was lost to another collection
	// while this one slept.
	freshTries = 5
	// sureFor is garbage.SureFor: what was put is taken to be there for so long.
	sureFor = time.Minute
)

// Config says how packs are written anew.
type Config struct {
	// Bucket has them. It repeats what may be repeated, see bucket.Retry.
	Bucket bucket.Bucket
	// Signer vouches for the fresh packs, as far as it may; the zero Signer does not.
	Signer trust.Signer
	// May is asked right before each old name is given to a stub: an error ends it all. Whoever collects looks there
	// whether another has taken over, and may have deleted the fresh pack since.
	May func(ctx context.Context) error
	// Secure is garbage.Secure: it is asked of a fresh pack that stubs name where that was put longer before than it can be
	// taken to be there, or the store did not say. What is lost is put anew. nil is to ask nobody.
	Secure func(ctx context.Context, keys []string) (lost []string, err error)
	// Least is how many bytes of a pack of that size must be won for it to be written anew.
	Least func(id pack.ID, size int64) int64
	// PackSize is the size at which a fresh pack is closed, in bytes; 0 is pack.SizeTarget.
	PackSize int
	// Now dates the packs.
	Now func() time.Time
	// Log receives what is worth telling an operator.
	Log *slog.Logger
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
	cfg.PackSize = cmp.Or(cfg.PackSize, pack.SizeTarget)
	w := &writing{cfg: cfg, group: g, alive: alive, reader: pack.NewReader(cfg.Bucket), out: Written{Moved: make(map[pack.ID]pack.ID)}}
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

// old is what lies under the name of a pack, as it was read or written last.
type old struct {
	id    pack.ID
	etag  string
	size  int64
	taker pack.ID   // that a stub names; "" of a pack
	at    time.Time // by the store's clock; zero where it did not say
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
		p := whole{Directory: d, old: old{id: id, etag: info.ETag, size: info.Size}, object: b}
		if err == nil && d.Moved == "" {
			err = p.choose(w.reader, frames)
		}
		return p, err
	})
	switch won := p.size - int64(p.bytes+len(p.live)*pack.EntrySize); {
	case err != nil || p.Moved != "":
	case won < w.cfg.Least(id, p.size):
		err = fmt.Errorf("%w: %d bytes of %d would be won", content.ErrInvalid, won, p.size)
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
		w.w = pack.NewWriter(pack.FreshID(p.id.Scope(), w.cfg.Now()), nil)
	}
	for _, e := range p.live {
		w.w.Add(e.Role, e.CID, int(e.Raw), e.Codec, p.object[e.Offset:e.End()])
	}
	w.filled = append(w.filled, p.old)
	return nil
}

// ship puts the pack that is filled, and then a stub under each of the old names. Killed before the Put, nothing was
// done; behind it, there is a pack that nothing names; behind a stub, those that follow are packs as they were. Stubs
// name their taker as a record does: where that was collected while this process slept, it is put anew.
func (w *writing) ship(ctx context.Context) error {
	fresh, filled := w.w, w.filled
	w.w, w.filled = nil, nil
	if len(filled) == 0 {
		return nil
	}
	for range freshTries {
		s, err := fresh.Seal(pack.SignedBy(w.cfg.Signer, fresh.ID().Scope(), w.cfg.Now))
		if err != nil {
			return err
		}
		there, err := pack.Store(ctx, w.cfg.Bucket, s)
		if err != nil {
			return err
		}
		w.out.Packs++
		w.out.Freed -= int64(len(s.Bytes))
		if filled, err = w.stubs(ctx, filled, s.ID, there); err != nil {
			return err
		}
		if len(filled) == 0 {
			if len(s.Signature) > 0 {
				w.packs = append(w.packs, index.Pack{ID: s.ID, Entries: slices.Clone(s.Directory), Signature: slices.Clone(s.Signature)})
			}
			return nil
		}
		w.cfg.Log.Warn("a fresh pack was collected before stubs named it; its frames are put anew", "pack", s.ID)
		if fresh, err = w.anew(s); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: what is put to take over from packs is deleted again and again", content.ErrConflict)
}

// anew begins another pack with the frames of one.
func (w *writing) anew(s pack.Sealed) (*pack.Writer, error) {
	fresh := pack.NewWriter(pack.FreshID(s.ID.Scope(), w.cfg.Now()), nil)
	for b := s.Directory; len(b) > 0; b = b[pack.EntrySize:] {
		e, err := pack.DecodeEntry(s.ID, b[:pack.EntrySize])
		if err != nil {
			return nil, err
		}
		fresh.Add(e.Role, e.CID, int(e.Raw), e.Codec, s.Bytes[e.Offset:e.End()])
	}
	return fresh, nil
}

// stubs gives old names to stubs. It returns those that have to be given to others, as the taker was lost by then.
func (w *writing) stubs(ctx context.Context, filled []old, taker pack.ID, there time.Time) (again []old, err error) {
	for i, o := range filled {
		o, err := w.stub(ctx, o, taker)
		if errors.Is(err, bucket.ErrPrecondition) || errors.Is(err, content.ErrNotFound) {
			w.leave(o.id, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if w.out.Moved[o.id] = o.taker; o.taker == taker {
			again = append(again, o)
		}
		lost, err := w.lost(ctx, taker, there, o.at)
		if err != nil {
			return nil, err
		}
		if lost {
			return append(again, filled[i+1:]...), nil
		}
		if err := w.redirect(ctx, o, there); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// lost reports whether a pack that was put at one time was collected before a stub named it at another.
func (w *writing) lost(ctx context.Context, taker pack.ID, there, at time.Time) (bool, error) {
	if w.cfg.Secure == nil || !there.IsZero() && !at.IsZero() && at.Sub(there) <= sureFor {
		return false, nil
	}
	lost, err := w.cfg.Secure(ctx, []string{taker.Key()})
	if err != nil {
		return false, fmt.Errorf("look whether pack %s is there, which stubs name: %w", taker, err)
	}
	return len(lost) > 0, nil
}

// stub gives an old name to a stub that names taker, if what lies there is what it was; else it is ErrPrecondition, or
// a stub of somebody else's. A lost reply is settled by reading.
func (w *writing) stub(ctx context.Context, o old, taker pack.ID) (old, error) {
	s := pack.NewWriter(o.id, nil).SealStub(taker)
	fail := func(err error) (old, error) { return o, fmt.Errorf("leave a stub of pack %s: %w", o.id, err) }
	var err error
	for range stubTries {
		if err := w.cfg.May(ctx); err != nil {
			return o, err
		}
		var info bucket.Info
		info, err = w.cfg.Bucket.Put(ctx, o.id.Key(), bucket.Bytes(s.Bytes), bucket.IfMatch(o.etag))
		now := old{o.id, info.ETag, int64(len(s.Bytes)), taker, info.Now}
		if errors.Is(err, content.ErrUnavailable) || errors.Is(err, bucket.ErrPrecondition) {
			var readErr error
			if now, readErr = w.look(ctx, o.id); readErr != nil {
				return fail(errors.Join(readErr, err))
			}
		} else if err != nil {
			return fail(err)
		}
		switch {
		case now.taker == taker:
			w.out.Freed += o.size - now.size
			return now, nil
		case now.etag == o.etag: // nothing was done
		case now.taker != "":
			return now, nil
		default:
			return fail(fmt.Errorf("it was written again meanwhile: %w: %w", bucket.ErrPrecondition, err))
		}
	}
	return fail(err)
}

// look reads what lies under the name of a pack: a stub, or another.
func (w *writing) look(ctx context.Context, id pack.ID) (old, error) {
	o, err := w.cfg.Bucket.Get(ctx, id.Key(), bucket.Range{Offset: -pack.SizeMin})
	if err != nil {
		return old{}, err
	}
	b, err := io.ReadAll(io.LimitReader(o.Body, pack.SizeMin))
	if err = errors.Join(err, o.Body.Close()); err != nil {
		return old{}, fmt.Errorf("read %s: %w: %w", o.Key, content.ErrUnavailable, err)
	}
	now := old{id: id, etag: o.ETag, size: o.Size, at: o.Now}
	if o.Size == pack.SizeMin {
		d, err := w.reader.ParsePack(ctx, id, b)
		if err != nil {
			return old{}, err
		}
		now.taker = d.Moved
	}
	return now, nil
}

// redirect has the stubs that lead to a pack by its old name lead to the one that took over: chains stay short. Where
// another was at one of them, or the taker is gone by then, it leads there all the same.
func (w *writing) redirect(ctx context.Context, to old, there time.Time) error {
	for _, before := range slices.Sorted(maps.Keys(w.group.Stubs)) {
		if w.group.Stubs[before] != to.id {
			continue
		}
		o, err := w.look(ctx, before)
		if err == nil && o.taker != "" && o.taker != to.taker {
			var lost bool
			if o, err = w.stub(ctx, o, to.taker); err == nil {
				lost, err = w.lost(ctx, to.taker, there, o.at)
			}
			if lost {
				o, err = w.stub(ctx, o, to.id)
			}
		}
		switch {
		case damaged(err) || errors.Is(err, bucket.ErrPrecondition):
			w.cfg.Log.Warn("an old stub stays as it is", "pack", before, "error", err)
		case err != nil:
			return err
		case o.taker != "":
			w.out.Moved[before] = o.taker
		}
	}
	return nil
}

// index tells importers of the fresh packs, so that they needn't read the directory of each.
func (w *writing) index(ctx context.Context) {
	if len(w.packs) == 0 {
		return
	}
	if err := index.Store(ctx, w.cfg.Bucket, pack.FreshID(w.packs[0].ID.Scope(), w.cfg.Now()), w.packs); err != nil {
		w.cfg.Log.Warn("no index object of the fresh packs; imports read their footers instead", "packs", len(w.packs), "error", err)
	}
}
