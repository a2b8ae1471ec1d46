package records

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// What a record names may be garbage by the time that it is written: whoever writes one may have slept since it
// was known to be there. So each commit of a record that begins to name something has that stay, see package
// garbage. Two things alone need no look: what the record that is replaced has named, and what was put just before, by
// the store's own clock. That another record names the same is not enough: it may go while a mark is under way that has
// passed this one. No clock of a node tells anything, as one that was suspended has none that does.
//
// What is not seen to be there yet is noted with the record on disk: after a crash the next commit over it begins
// anew, and takes nothing of what it replaces for granted.

// added is what a record names that the one before it did not.
type added struct {
	head     *pack.Head
	segments []content.SegmentRef
	kept     *pack.Head // of what was there before, if all that is referred to in its packs is of that
	doubted  bool       // so that nothing of that is taken for granted
	same     bool       // as what was there before: there is nothing to take back
}

// adds is what e names beyond what it replaces, if that is a record. Segments of a volume's own journal are not
// among that: what lies behind its record is never garbage.
func (n *Names) adds(e trust.Envelope, base *catalog.Record) (x added, err error) {
	d, err := n.keeping(e)
	if err != nil || e.Tombstone {
		return x, err
	}
	var was catalog.Content
	if base != nil {
		was, _ = n.keeping(base.Envelope) // one that says nothing that can be told names nothing
		n.mu.Lock()
		said := n.entry(key(e.Kind, e.Name)).said
		n.mu.Unlock()
		x.doubted = said != nil && said.Commit == base.Commit && said.unproved
	}
	if e.Kind == content.KindVolume && len(d.Lineage) > 0 && d.Lineage[0] == was.Root { // a fold
		x.kept = was.Head
	}
	x.same = isSame(d.Head, was.Head) && slices.Equal(d.Segments, was.Segments)
	if d.Head != nil && (x.doubted || !isSame(d.Head, was.Head)) {
		x.head = d.Head
	}
	for _, s := range d.Segments {
		if s.Volume != d.Volume && (x.doubted || !slices.Contains(was.Segments, s)) {
			x.segments = append(x.segments, s)
		}
	}
	return x, nil
}

// keeping is what a record keeps at the origin.
func (n *Names) keeping(e trust.Envelope) (catalog.Content, error) {
	d, err := catalog.Describe(n.cfg.Codec, e)
	d.Head = cmp.Or(d.Head, d.Leased)
	return d, err
}

func (x added) isNothing() bool { return x.head == nil && len(x.segments) == 0 }

// isSame reports whether two heads are of the same objects; a volume's has its farm's scope.
func isSame(a, b *pack.Head) bool {
	return a != nil && b != nil && a.Root == b.Root && a.Node == b.Node && a.Page == b.Page && a.Manifest == b.Manifest
}

// isSure reports whether nothing can have become of what a record names, which landed at a time by the store's
// clock: since is from when on that was put, zero for not known.
func (x added) isSure(since, landed time.Time) bool {
	return x.isNothing() || !x.doubted && !since.IsZero() && !landed.IsZero() && landed.Sub(since) <= garbage.SureFor
}

// commitAtOrigin is Commit by a catalog.
func (n *Names) commitAtOrigin(ctx context.Context, c *catalog.Catalog, ch catalog.Change) (catalog.Record, error) {
	asked := n.cfg.Now()
	r, err := c.Commit(ctx, ch)
	if err != nil {
		return r, err
	}
	x, err := n.adds(r.Envelope, ch.Base)
	if err != nil {
		return r, err
	}
	sure := x.isSure(ch.Since, r.Now)
	if err := n.wrote(r, asked, sure); err != nil || sure {
		return r, err
	}
	lost, err := x.secure(ctx, c.Bucket())
	switch {
	case err != nil:
		return r, fmt.Errorf("write %s %q: whether all that it names is there: %w", r.Kind, r.Name, err)
	case len(lost) == 0:
		return r, n.wrote(r, asked, true)
	}
	err = &catalog.GoneError{Kind: r.Kind, Name: r.Name, Keys: lost}
	if !ch.Damaged && !x.same {
		err = errors.Join(err, n.takeBack(ctx, c, ch.Base, r))
	}
	return r, err
}

// wrote is Told of a record that this node has written, and whether all is there that it names.
func (n *Names) wrote(r catalog.Record, asked time.Time, proved bool) error {
	k, err := n.describe(r)
	if err != nil {
		return err
	}
	n.changeForGood(key(r.Kind, r.Name), func(e entry) entry {
		e = e.taking(k, n.isBad).told(k, asked, n.cfg.Now())
		if said := e.said; said != nil && said.Commit == k.Commit && said.unproved == proved {
			now := *said
			now.unproved = !proved
			e.said = &now
		}
		return e
	})
	return nil
}

// takeBack writes what was there before over a record that names what is gone.
func (n *Names) takeBack(ctx context.Context, c *catalog.Catalog, base *catalog.Record, r catalog.Record) error {
	back := catalog.Change{Kind: r.Kind, Name: r.Name, Farm: r.Farm, Base: &r, Delete: true}
	if base != nil && !base.Tombstone {
		back.Kind, back.Farm, back.Body, back.Delete = base.Kind, base.Farm, base.Body, false
	}
	asked := n.cfg.Now()
	w, err := c.Commit(ctx, back)
	if err != nil {
		return fmt.Errorf("take that back: %w", err)
	}
	x, err := n.adds(w.Envelope, nil)
	var lost []string
	if err == nil && !x.isNothing() { // for a moment no record has named it
		lost, err = x.secure(ctx, c.Bucket())
	}
	if len(lost) > 0 {
		n.cfg.Log.Error("what a record named before is gone too", "kind", w.Kind, "name", w.Name, "objects", lost)
	}
	return errors.Join(err, n.wrote(w, asked, err == nil && len(lost) == 0))
}

// submitAtOrigin writes a record for a member. Only that can take it back, so what it names is seen to be there before
// it is written, too.
func (n *Names) submitAtOrigin(ctx context.Context, c *catalog.Catalog, e trust.Envelope, s Submission) (catalog.Record, error) {
	var base *catalog.Record
	if now, err := c.Get(ctx, e.Kind, e.Name); err == nil && now.ETag == s.ETag {
		base = &now
	}
	x, err := n.adds(e, base)
	secure := func() error {
		if err != nil || x.isNothing() {
			return err
		}
		lost, err := x.secure(ctx, c.Bucket())
		if err == nil && len(lost) > 0 {
			err = &catalog.GoneError{Kind: e.Kind, Name: e.Name, Keys: lost}
		}
		return err
	}
	if err := secure(); err != nil {
		return catalog.Record{}, err
	}
	r, err := c.Submit(ctx, s.Sealed, s.ETag)
	if err == nil {
		err = secure()
	}
	return r, err
}

// secure has all stay that is named, and returns the keys of what is gone.
func (x added) secure(ctx context.Context, at bucket.Bucket) (lost []string, err error) {
	var keys []string
	if x.head != nil {
		m, err := pack.NewReader(at).ReadManifest(ctx, *x.head)
		switch {
		case isGone(err):
			return []string{x.head.Manifest.Pack.Key()}, nil
		case err != nil:
			return nil, err
		}
		keys = m.Keys()
	}
	for _, s := range x.segments {
		if s.Tails == 0 {
			keys = append(keys, s.Key())
			continue
		}
		tails, err := catalog.TailKeys(ctx, at, s)
		if err != nil {
			return nil, err
		}
		if keys = append(keys, tails...); len(tails) < s.Tails {
			lost = append(lost, s.TailKey())
		}
	}
	more, err := garbage.Secure(ctx, at, keys, x.keeps(ctx, at))
	return append(lost, more...), err
}

// isGone reports whether an error says that an object is not what it was any more.
func isGone(err error) bool {
	return errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrInvalid)
}

// keeps tells which of some packs were named before; of others it looks whether all is where they went. What those are is
// read once it is asked.
func (x added) keeps(ctx context.Context, at bucket.Bucket) func(keys []string) map[string]bool {
	return func(keys []string) map[string]bool {
		kept := map[string]bool{}
		if x.kept != nil {
			was, _ := pack.NewReader(at).ReadManifest(ctx, *x.kept) // one that can't be read keeps nothing
			for _, key := range was.Keys() {
				kept[key] = true
			}
		}
		keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return kept[key] })
		if x.head != nil && len(keys) > 0 {
			maps.Copy(kept, garbage.Follows(ctx, at, *x.head)(keys))
		}
		return kept
	}
}
