package garbage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// brokenMax bounds the damage that a report lists.
	brokenMax = 100
	// holdSlack is how much later than its record a pack may have been begun, by its name: the clock of whoever named it
	// may have been off.
	holdSlack = 24 * time.Hour
	// chainMax bounds how often the frames of a pack have moved on, as readers do.
	chainMax = 8
)

// marks is what records name. Its rows are those of the survey.
type marks struct {
	*survey
	reader *pack.Reader
	// wanted are packs that are to be written anew, and heads all that name one of those.
	wanted map[pack.ID]bool
	heads  []pack.Head
	names  int64 // records that name anything
	turn   bool  // that of the collection is among the records

	mu       sync.Mutex // guards all above and below while records are read
	seen     map[read]bool
	volumes  map[content.VolumeID]content.Position // those that have a record, and up to where that has their journals
	segments map[string]bool                       // keys that are named
	tails    map[content.VolumeID][]content.SegmentRef
	holds    []hold
	held     bool // journals: a record that can't be read may name any
	broken   []Broken
	absent   []absence
}

// read is a manifest that is read, and whose it is to be: another may be named by mistake.
type read struct {
	manifest  pack.Extent
	top, page content.CID
}

// absence are packs that a record names and the list of all did not show.
type absence struct {
	record string
	packs  []pack.ID
}

// hold keeps packs that something that can't be read may name: those of a scope, or of all for the zero one, that were
// begun between two hours.
type hold struct {
	scope    content.Scope
	from, to uint32
}

// hourOf is an hour as packs have it.
func hourOf(t time.Time) uint32 {
	n, _ := strconv.ParseUint(t.UTC().Format("2006010215"), 10, 32)
	return uint32(n)
}

// mark reads all records, and what they name.
func mark(ctx context.Context, src Source, s *survey, wanted map[pack.ID]bool, progress func(done int64)) (*marks, error) {
	at := src.Bucket.(*dated)
	m := &marks{
		survey: s, reader: pack.NewReader(src.Bucket), wanted: wanted, seen: map[read]bool{}, volumes: map[content.VolumeID]content.Position{},
		segments: map[string]bool{}, tails: map[content.VolumeID][]content.SegmentRef{},
	}
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	var err error
	for r, bad := range src.Records(reading) { // each record its own: its root is read while the loop goes on
		if err = bad; err == nil && errors.Is(r.Err, content.ErrUnknown) {
			err = r.Err
		}
		if err != nil {
			break
		}
		if h := m.record(src, r); h != nil {
			group.Go(func() error { return m.root(reading, r, *h) })
		}
		progress(m.names)
	}
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that reading was told to end
	}
	if err == nil {
		err = m.lack(ctx, at)
	}
	m.settle()
	return m, err
}

// hold notes what can't be read, and may name packs.
func (m *marks) hold(h hold, b Broken) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds = append(m.holds, h)
	m.report(b)
}

// report is called with mu. What is said of a name first counts.
func (m *marks) report(b Broken) {
	said := slices.ContainsFunc(m.broken, func(x Broken) bool { return x.Name == b.Name })
	if !said && len(m.broken) < brokenMax {
		m.broken = append(m.broken, b)
	}
}

// record marks what a record names itself, and returns the head whose root is to be read; nil for none.
func (m *marks) record(src Source, r Record) *pack.Head {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names++
	m.turn = m.turn || r.Space == content.KindCollection
	if r.Err != nil {
		if m.report(Broken{Name: r.Label(), Error: content.Line(r.Err)}); r.Space == content.KindCollection || r.Space == content.KindRevocation {
			return nil // which name nothing
		}
		m.holds = append(m.holds, hold{content.Scope{}, 0, hourOf(r.Written.Add(holdSlack))})
		m.held = m.held || r.Space != content.KindImage && r.Space != content.KindInstance
		return nil
	}
	if _, revoked := src.Verifier.Revoked(r.Envelope.Signer.Key); revoked && r.Kind == content.KindLease {
		return nil // with its member, who does not come back
	}
	if r.Unsigned != nil {
		m.report(Broken{Name: r.Label(), Error: content.Line(r.Unsigned)})
	}
	if r.Kind == content.KindVolume {
		if through, also := m.volumes[r.Volume]; !also || r.Through.Number < through.Number { // another's record may say that it is this
			m.volumes[r.Volume] = r.Through
		}
	}
	for _, s := range r.Segments {
		if s.Tails == 0 {
			m.segments[s.Key()] = true
		} else {
			m.tails[s.Volume] = append(m.tails[s.Volume], s)
		}
	}
	h := r.Head
	if h == nil {
		return nil
	}
	m.name(h.Manifest.Pack, 0)
	if !h.Root.Map.IsHole() {
		m.name(h.Node.Pack, 0)
	}
	of := read{h.Manifest, h.Root.Map, h.Page.CID}
	if m.seen[of] {
		return nil
	}
	m.seen[of] = true
	return h
}

// root marks what a root needs, by its manifest; by its map, where that can't be read.
func (m *marks) root(ctx context.Context, r Record, h pack.Head) error {
	manifest, err := m.reader.ReadManifest(ctx, h)
	if err == nil {
		err = manifest.CheckOf(content.NewCodec(), h)
	}
	if errors.Is(err, content.ErrUnknown) || err != nil && !content.IsDamage(err) {
		return fmt.Errorf("%s: %w", r.Label(), err)
	}
	packs := manifest.Packs
	if err != nil {
		broken := Broken{Name: r.Label(), Error: content.Line(err)}
		if packs, err = walked(ctx, m.reader, h); err != nil && !content.IsDamage(err) {
			return fmt.Errorf("%s: %w", r.Label(), err)
		}
		if err != nil {
			m.hold(hold{h.Scope, 0, hourOf(r.Written.Add(holdSlack))}, broken)
		} else {
			m.hold(hold{h.Scope, 1, 0}, broken) // its map says all that it names
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []pack.ID
	wanted := false
	for _, p := range packs {
		there, wants := m.name(p.ID, p.Bytes)
		if wanted = wanted || wants; !there {
			missing = append(missing, p.ID)
		}
	}
	if wanted {
		m.heads = append(m.heads, h)
	}
	if len(missing) > 0 {
		m.absent = append(m.absent, absence{r.Label(), missing})
	}
	return nil
}

// lack tells packs that came since all were listed from those that are lost, and both from those that the list has left out:
// who is not shown all of what there is must not say what is dead.
func (m *marks) lack(ctx context.Context, at *dated) error {
	for _, a := range m.absent {
		var lost []pack.ID
		for _, id := range a.packs {
			o, err := at.Get(ctx, id.Key(), bucket.Range{Length: 1})
			switch {
			case errors.Is(err, content.ErrNotFound):
				lost = append(lost, id)
				continue
			case err != nil:
				return err
			}
			if err := o.Body.Close(); err != nil {
				return err
			}
			if o.Modified.Before(m.began.Add(-slipMax)) {
				return fmt.Errorf("%w: its list of all packs left out %s, which is there", bucket.ErrDoubt, id.Key())
			}
		}
		if len(lost) > 0 {
			m.report(Broken{Name: a.record, Error: fmt.Sprintf("%d packs that it needs are not there; import it again", len(lost)), Packs: lost[:min(len(lost), brokenMax)]})
		}
	}
	return nil
}

// name marks a pack, and those that took its frames over. It reports whether it is there, and whether one of them is to be
// written anew. Called with mu.
func (m *marks) name(id pack.ID, bytes uint64) (there, wanted bool) {
	for range chainMax + 1 {
		r := m.packs.find(id)
		if wanted = wanted || m.wanted[id]; r == nil {
			return false, wanted
		}
		if bytes > 0 && r.live > 0 {
			r.state |= isShared
		}
		r.state |= isLive
		r.live = uint32(min(uint64(r.live)+bytes, pack.SizeMax))
		r.most = max(r.most, uint32(min(bytes, pack.SizeMax)))
		to, moved := m.moved[id]
		if !moved {
			return true, wanted
		}
		id = to
	}
	return true, wanted
}

// walked returns the packs that a root's map refers to. Bytes are not counted.
func walked(ctx context.Context, r *pack.Reader, h pack.Head) ([]pack.PackRefs, error) {
	packs := map[pack.ID]bool{h.Manifest.Pack: true}
	var walk func(level int, p pack.Pair) error
	walk = func(level int, p pack.Pair) error {
		packs[p.Node.Pack] = true
		n, err := r.ReadNode(ctx, h.Scope, level, p)
		for i := 0; err == nil && i < n.Page.Len(); i++ {
			if at, ok := n.Page.Child(i); ok {
				packs[at.Pack] = true
			}
			if pair, ok := n.Page.ChildPair(n.Node, i); ok {
				err = walk(level-1, pair)
			}
		}
		return err
	}
	var err error
	if !h.Root.Map.IsHole() {
		err = walk(h.Root.Shape().Depth(), h.Top())
	}
	out := make([]pack.PackRefs, 0, len(packs))
	for id := range packs {
		out = append(out, pack.PackRefs{ID: id})
	}
	return out, err
}

// settle notes which packs and segments live, or are held.
func (m *marks) settle() {
	m.keep(m.holds)
	var holds []hold
	for _, id := range m.lost { // one that nobody needs holds nothing, and goes
		if r := m.packs.find(id); r.state.is(isLive | isHeld) {
			holds = append(holds, hold{id.Scope(), r.hour, ^uint32(0)})
			m.report(Broken{Name: id.Key(), Error: "it says that its frames moved, and can't be read"})
		}
	}
	m.keep(holds)
	m.follow()
	for i := range m.journals {
		x := &m.journals[i]
		switch {
		case m.needs(x):
			x.state |= isLive
		case m.held:
			x.state |= isHeld
		}
	}
}

// keep holds packs.
func (m *marks) keep(holds []hold) {
	for i := range m.packs.rows {
		r := &m.packs.rows[i]
		if slices.ContainsFunc(holds, func(h hold) bool {
			return h.from <= r.hour && r.hour <= h.to && (h.scope.IsZero() || m.packs.scopeOf(r).Covers(h.scope))
		}) {
			r.state |= isHeld
		}
	}
}

// follow holds what took over from packs that are held: those may be older than what is held by their names.
func (m *marks) follow() {
	for id := range m.moved {
		r := m.packs.find(id)
		for range chainMax {
			to, moved := m.moved[id]
			if !moved || !r.state.is(isHeld) {
				break
			}
			next := m.packs.find(to)
			if next == nil {
				break
			}
			next.state |= isHeld
			id, r = to, next
		}
	}
}

// needs reports whether a segment is named, or may be about to be: whatever ends at the place that the record of its
// volume has, or behind it, may hold what a flush has acknowledged. Empty tails end an epoch while the volume lives.
func (m *marks) needs(x *segment) bool {
	through, lives := m.volumes[x.ref.Volume]
	if !x.tail {
		return m.segments[x.key] || lives && x.ref.Through.Number >= through.Number
	}
	if lives && (x.ref.After.Number >= through.Number || x.size <= catalog.TailHeader) {
		return true
	}
	return slices.ContainsFunc(m.tails[x.ref.Volume], func(run content.SegmentRef) bool {
		return run.Epoch == x.ref.Epoch && run.After.Number <= x.ref.After.Number && x.ref.After.Number < run.Through.Number
	})
}
