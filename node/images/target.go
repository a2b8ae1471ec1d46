package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

const (
	// headsPrefix is where the heads of what a target has lie, each by its sum; beside the packs.
	headsPrefix = "heads/"
	// headMax bounds one, in bytes.
	headMax = 4 << 10
	// worthLeast is the part of a pack, one in so many, that has to be of use for more of it to be referred to: what is
	// left of another is written anew, so that it goes.
	worthLeast = 4
)

// Target is a store of its own, beside the mesh's origin, for what one workload has. One node at a time writes there: whom the
// workload's record names. No member asks another for what is in it.
type Target struct {
	im    *Images
	url   string
	store bucket.Bucket
	dir   string
}

// Away is what is in a target.
type Away struct {
	// Head names the head there, and Root what that is of.
	Head, Root content.CID
	left       []string // what nothing needs once a record names that
}

// Target opens the target at a URL, as an origin's is. What is remembered of it is in a folder of the caller's.
func (im *Images) Target(ctx context.Context, url, dir string) (*Target, error) {
	store, err := im.cfg.Target(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", url, err)
	}
	return &Target{im, url, store, dir}, nil
}

// Reach fails where the target can't be listed: its name is wrong, as a rule, or its credentials are.
func (t *Target) Reach(ctx context.Context) error {
	for _, err := range t.store.List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("target %s: %w", t.url, err)
		}
		break
	}
	return nil
}

func headKey(id content.CID) string { return headsPrefix + id.String() }

// head reads one.
func (t *Target) head(ctx context.Context, id content.CID) (pack.Head, error) {
	b, _, err := bucket.ReadAll(ctx, t.store, headKey(id), headMax)
	if err == nil {
		_, err = content.Verify(id, b)
	}
	if err != nil {
		return pack.Head{}, fmt.Errorf("what was put away at %s: %w", t.url, err)
	}
	return pack.DecodeHead(t.im.cfg.Codec, b)
}

// Stow stores what is in a folder as Images.Stow does, in place of what a head names; none is the zero CID. What the last one
// has stays until Tidy.
func (t *Target) Stow(ctx context.Context, op Updater, what ToStow, before content.CID) (Away, Stowed, error) {
	old := map[string]bucket.Info{} // what is there before anything is written: all of it is of nodes that are done
	for info, err := range t.store.List(ctx, "", "") {
		if err != nil {
			return Away{}, nil, fmt.Errorf("target %s: %w", t.url, err)
		}
		old[info.Key] = info
	}
	good, err := t.worthy(ctx, before, old)
	if err != nil {
		return Away{}, nil, err
	}
	at := place{store: t.store, known: only{t.store, func(key string) bool { return good[key] }}, dir: t.dir}
	body, now, err := t.im.stow(ctx, op, convert.Options{Path: what.Dir, Format: convert.Dir}, build.Config{Scope: what.Scope, Lineage: what.Lineage}, known{what.Was, &at})
	if err != nil {
		return Away{}, nil, fmt.Errorf("store what is in %s at %s: %w", what.Dir, t.url, err)
	}
	m, err := pack.NewReader(t.store).ReadManifest(ctx, body.Head)
	if err != nil {
		return Away{}, nil, err
	}
	b, err := body.Head.Encode(t.im.cfg.Codec)
	out := Away{Head: content.Sum(b), Root: m.Root}
	if err == nil {
		_, err = t.store.Put(ctx, headKey(out.Head), bucket.Bytes(b), bucket.Condition{})
	}
	delete(old, headKey(out.Head))
	for _, p := range m.Packs {
		delete(old, p.ID.Key())
	}
	for key := range old {
		out.left = append(out.left, key)
	}
	return out, now, err
}

// worthy are the keys of the packs that what is stored next may refer to: those alone that the last head needs, so that a node
// which tidies up late takes nothing away that another has come to need.
func (t *Target) worthy(ctx context.Context, before content.CID, there map[string]bucket.Info) (map[string]bool, error) {
	good := map[string]bool{}
	if before.IsHole() {
		return good, nil
	}
	head, err := t.head(ctx, before)
	if err != nil {
		return nil, err
	}
	m, err := pack.NewReader(t.store).ReadManifest(ctx, head)
	for _, p := range m.Packs {
		if int64(p.Bytes) >= there[p.ID.Key()].Size/worthLeast {
			good[p.ID.Key()] = true
		}
	}
	return good, err
}

// Tidy removes what is left of earlier times. A record names what was put away by now.
func (t *Target) Tidy(ctx context.Context, a Away) (err error) {
	for _, key := range a.left {
		err = errors.Join(err, t.store.Delete(ctx, key))
	}
	return err
}

// Remove removes all that is there.
func (t *Target) Remove(ctx context.Context) error {
	var all Away
	for info, err := range t.store.List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("target %s: %w", t.url, err)
		}
		all.left = append(all.left, info.Key)
	}
	return t.Tidy(ctx, all)
}

// Harvest writes what a head names into a folder as Images.Harvest does.
func (t *Target) Harvest(ctx context.Context, op Updater, id content.CID, dir string) (said []string, err error) {
	head, err := t.head(ctx, id)
	if err != nil {
		return nil, err
	}
	op.Update(func(v *operations.View) { v.Total = head.Root.Size })
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, bare(err)
	}
	ctx, end := context.WithCancel(ctx)
	d := t.im.newDirect(ctx, t.store, head, func(n int) {
		op.Update(func(v *operations.View) { v.Done += int64(n); v.Bytes["target"] += int64(n) })
	})
	defer d.reading.Wait()
	defer end()
	planted, err := tree.Open(ctx, t.im.cfg.Codec, head.Root, passing(op, d.read))
	if err == nil {
		err = convert.Harvest(ctx, planted, dir, func(text string) { said = append(said, text) })
	}
	return said, err
}

// only is a bucket of which a list shows some packs alone.
type only struct {
	bucket.Bucket
	shows func(key string) bool
}

// List implements bucket.Bucket.
func (o only) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		for info, err := range o.Bucket.List(ctx, prefix, after) {
			hidden := strings.HasPrefix(info.Key, string(content.KeyPacks)) && !o.shows(info.Key)
			if !(err == nil && hidden) && !yield(info, err) {
				return
			}
		}
	}
}
