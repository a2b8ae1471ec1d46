package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// check is all that has to be so of all volumes at any time: what is read is what the
// reference allows, what was promised is there, records follow each other and fit, what they
// name is in the bucket, durable snapshots read back from that alone, and no file is left
// without a name.
func (b *book) check() error {
	b.farm.mu.Lock()
	misused := slices.Clone(b.farm.misused)
	b.farm.mu.Unlock()
	if len(misused) > 0 {
		return errors.New(strings.Join(misused, "; "))
	}
	for _, m := range b.farm.nodes() {
		for folder, why := range m.index.Broken {
			return fmt.Errorf("%s can't read its folder %s: %w", m, folder, why)
		}
		for _, e := range m.index.Sorted() {
			b.volumeOf(e.Name, e.ID)
		}
		open := maps.Collect(m.devices)
		for _, name := range slices.Sorted(maps.Keys(open)) {
			a := open[name]
			if a.err != nil && !excused(a.err) {
				return fmt.Errorf("%s does not serve %q: %w", m, name, a.err)
			}
			if a.vol != nil && a.err == nil {
				if err := b.settle(m, a); err != nil {
					return err
				}
			}
		}
		if err := b.checkFiles(m); err != nil {
			return err
		}
	}
	if err := b.checkRecords(); err != nil {
		return err
	}
	return b.checkSnapshots()
}

// changed reports whether a record is another than when it was looked at last.
func (b *book) changed(r catalog.Record) bool {
	id := string(r.Kind) + ":" + r.Name
	if b.looked[id] == r.ETag {
		return false
	}
	b.looked[id] = r.ETag
	return true
}

func (b *book) checkRecords() error {
	there := map[content.VolumeID]bool{}
	for r, err := range b.farm.catalog.List(context.Background(), content.KindVolume, "", "") {
		if err != nil {
			return err
		}
		if r.Tombstone {
			continue
		}
		body, err := catalog.DecodeVolume(content.NewCodec(), r.Body)
		if err == nil && len(r.Sealed) > content.RecordSizeMax {
			err = fmt.Errorf("it has %d bytes", len(r.Sealed))
		}
		there[body.ID] = true
		if err == nil && b.changed(r) {
			err = b.checkRecord(r.Name, body)
		}
		if err != nil {
			return fmt.Errorf("the record of volume %q: %w", r.Name, err)
		}
	}
	for id, v := range b.byID {
		if v.removed = !there[id] && b.committed(v); v.removed && v.there && !v.going {
			return fmt.Errorf("the record of volume %q is gone, and nobody who may has removed it", v.name)
		}
		v.there = v.there || there[id]
	}
	return nil
}

// committed reports whether a volume's record was there.
func (b *book) committed(v *modelVolume) bool {
	for _, m := range b.farm.nodes() {
		if e, ok := m.index.Get(v.name); ok && e.ID == v.id && !e.Committed {
			return false
		}
	}
	return true
}

func (b *book) checkRecord(name string, body catalog.Volume) error {
	if body.Epoch < b.epochs[name] {
		return fmt.Errorf("epoch %d comes after %d", body.Epoch, b.epochs[name])
	}
	b.epochs[name] = body.Epoch
	epoch, stamp := fmt.Sprintf("%s/%d", name, body.Epoch), fmt.Sprintf("%s of %s", stampText(body), body.ID)
	if was := b.stamps[epoch]; was != "" && was != stamp {
		return fmt.Errorf("epoch %d was given twice: %s, and %s", body.Epoch, was, stamp)
	}
	b.stamps[epoch] = stamp
	v := b.volumeOf(name, body.ID)
	if v == nil {
		return errors.New("nobody has made it")
	}
	if v.called != "" && v.called != name {
		v.reborn(b.farm.member(body.Holder))
	}
	v.called = name
	b.farm.note("  %s: epoch %d of %s, %s, %s, %d holders, from %d through %d", name, body.Epoch, b.farm.member(body.Holder), body.State, body.Policy, len(body.Holders), body.Base.Seq, body.Through().Seq)
	if v.policies != nil && !slices.Contains(v.policies, body.Policy) {
		return fmt.Errorf("it says %s, and was asked for %s", body.Policy, v.policies)
	}
	if body.Size < v.size {
		return fmt.Errorf("it has %d bytes, and was grown to %d", body.Size, v.size)
	}
	if v.folded != nil && body.Policy == catalog.PolicyLocal { // one disk does, also for what others were promised before
		v.promised = v.folded
	}
	if v.owner != nil && body.Holder == v.owner.m.key && !v.passed { // whether it is served under that or not
		v.owner.epoch = body.Epoch
	}
	if v.owner == nil || body.Rolling != 0 { // nobody has served it yet, or it is on its way
		return nil
	}
	found, err := b.observe(catalog.Snapshot{ID: body.ID, Size: body.Size, Epoch: body.Epoch, Folded: body.Folded, At: body.Through()})
	if err != nil {
		return err
	}
	v.passed = v.passed || body.Holder != v.owner.m.key
	v.released = body.State == catalog.Released && !v.passed
	if v.folded != nil && slices.Equal(v.folded.disk, found) { // not what came later, and is the same again
		return nil
	}
	for _, from := range v.owner.may() {
		if s := from.find(found); s != nil && s.has(v.folded) && (!v.released || s == from || s == v.folded) {
			if v.folded = s; s.has(v.promised) {
				v.promised = s
			}
			return nil
		}
	}
	if pick(v.rolling, found) != nil { // before a member shows it
		v.folded = v.rolledBack(found)
		return nil
	}
	return fmt.Errorf("the bucket has what the volume never was, or no more what it had (released: %t)", v.released)
}

// observe reads what the bucket has of a snapshot, as a member would that knows nothing else.
func (b *book) observe(body catalog.Snapshot) (d disk, err error) {
	store := b.farm.shelf.bucket
	if body.Head != nil {
		manifest, err := pack.NewReader(store).ReadManifest(context.Background(), *body.Head)
		if err != nil {
			return nil, fmt.Errorf("its root: %w", err)
		}
		if missing, err := pack.MissingPacks(context.Background(), store, manifest, nil); err != nil || len(missing) > 0 {
			return nil, fmt.Errorf("packs of its root are missing: %v, %w", missing, err)
		}
	}
	origin := func() (bucket.Bucket, error) { return store, nil }
	cfg := moment.Config{Dir: filepath.Join(b.farm.root, "observer"), Log: slog.New(slog.DiscardHandler), Origin: origin, Root: func(_ context.Context, head pack.Head, _ []content.CID) (volume.Source, error) {
		return packed{pack.NewReader(store), head}, nil
	}}
	m, err := cfg.Open(context.Background(), body)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return readDisk(m.Size, func(p []byte, off int64) error { return m.Read(context.Background(), p, off) })
}

// packed reads a root at the origin: a volume.Source without a cache.
type packed struct {
	r    *pack.Reader
	head pack.Head
}

func (packed) TryReadChunk(uint64, int, []byte) bool { return false }

func (packed) NextData(context.Context, uint64) (uint64, uint64, error) { return 0, 0, io.EOF }

func (s packed) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	clear(p)
	top := s.head.Top()
	if top.Node.CID.IsHole() {
		return nil
	}
	n, err := s.r.ReadNode(ctx, s.head.Scope, s.head.Root.Shape().Depth(), top)
	if err != nil {
		return err
	}
	at, ok := n.Page.Child(int(index))
	if !ok {
		return nil
	}
	got, err := s.r.ReadFrames(ctx, []pack.Extent{{CID: n.Node.Entry(int(index)), Location: at}})
	if err == nil {
		copy(p, got[0].Bytes()[off:])
	}
	return err
}

func (b *book) checkSnapshots() error {
	seen := map[string]bool{}
	for _, r := range (ledger{b.farm.catalog}).Snapshots(context.Background(), "") {
		body, err := catalog.DecodeSnapshot(content.NewCodec(), r.Name, r.Body)
		if err == nil && len(r.Sealed) > content.RecordSizeMax {
			err = fmt.Errorf("it has %d bytes", len(r.Sealed))
		}
		if err == nil {
			err = b.checkSnapshot(r, body)
		}
		if err != nil {
			return fmt.Errorf("the record of snapshot %q: %w", r.Name, err)
		}
		seen[fmt.Sprintf("%s@%d", body.ID, body.Number)] = !body.Orphan
	}
	for id, v := range b.byID {
		for number, s := range v.snaps {
			switch {
			case seen[fmt.Sprintf("%s@%d", id, number)]:
			case s.going || v.purged:
				delete(v.snaps, number)
			default:
				return fmt.Errorf("snapshot %d of volume %q is gone", number, v.name)
			}
		}
	}
	return nil
}

func (b *book) checkSnapshot(r catalog.Record, body catalog.Snapshot) error {
	v := b.byID[body.ID]
	switch {
	case v == nil:
		return errors.New("it is of a volume that nobody has made")
	case body.Orphan:
		return b.checkOrphan(r, v, body)
	case v.snaps[body.Number] == nil && v.naming == nil:
		return errors.New("nobody has made it")
	case v.snaps[body.Number] == nil:
		v.snaps[body.Number] = &modelSnap{state: v.naming, at: v.places[b.farm.member(body.Holder)]}
	}
	s := v.snaps[body.Number]
	if s.durable && !body.Durable {
		return errors.New("it was durable")
	}
	var found disk
	var err error
	if s.durable = body.Durable; s.durable {
		if !b.changed(r) {
			return nil
		}
		found, err = b.observe(body)
	} else {
		m := b.farm.member(body.Holder)
		a := m.device(v.name)
		e, _ := m.index.Get(v.name)
		if a == nil || a.folds == nil || a.err != nil || e.ID != body.ID || v.places[m] != s.at {
			return nil
		}
		if found, err = b.visit(m, body); errors.Is(err, content.ErrUnavailable) {
			return nil
		}
	}
	if err == nil && !slices.Equal(found, s.state.disk) {
		err = fmt.Errorf("it has other bytes (durable: %t)", body.Durable)
	}
	return err
}

// visit reads a snapshot at a member.
func (b *book) visit(m *member, body catalog.Snapshot) (d disk, err error) {
	x, err := m.momentOfSnapshot(context.Background(), body.Ref().RecordName(), m.device(body.Volume))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	return readDisk(x.Size, func(p []byte, off int64) error { return x.Padded(context.Background(), p, off) })
}

// checkOrphan has what stayed behind be there, where it says.
func (b *book) checkOrphan(r catalog.Record, v *modelVolume, body catalog.Snapshot) error {
	m := b.farm.member(body.Holder)
	var p *place
	for _, x := range append(slices.Clone(v.behind), v.owner) { // who died as it took an epoch may not have heard that it has
		if x.m == m && x.epoch >= body.Epoch && (p == nil || x.epoch < p.epoch) {
			p = x
		}
	}
	switch {
	case v.removed || p != nil && (p.mixed || p == v.owner && len(v.rolling) > 0):
		return nil
	case p == nil:
		return fmt.Errorf("%s had no epoch %d of it", m, body.Epoch)
	}
	if a := m.device(v.name); a != nil && a.vol != nil && v.places[m] == p { // it is served still
		return nil
	}
	found, err := b.visit(m, body)
	if errors.Is(err, content.ErrUnavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, from := range p.may() {
		if s := from.find(found); s != nil && s.has(p.synced) && (p.torn || s == from) {
			return nil
		}
	}
	return errors.New("it is not what was left behind")
}

// checkFiles has each file of a member be one that a volume, or an orphan, has.
func (b *book) checkFiles(m *member) error {
	folders, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return cmp.Or(onlyBut(err, os.ErrNotExist), nil)
	}
	named := map[string]bool{index.ViewsDir: true, "orphans": true}
	for _, e := range m.index.Sorted() {
		named[e.Folder()] = true
	}
	for _, folder := range folders {
		if !named[folder.Name()] {
			return fmt.Errorf("%s has a folder %s that no volume of its is", m, folder.Name())
		}
		files, err := os.ReadDir(filepath.Join(m.cfg.Dir, folder.Name()))
		if err != nil {
			return err
		}
		for _, file := range files {
			_, _, segment := journal.ParseName(file.Name())
			switch known := segment || slices.Contains([]string{index.FileName, journal.NoteName, "lock"}, file.Name()); {
			case folder.Name() == "orphans":
				if b.well { // else it gets its name later
					err = b.checkAside(m, file.Name())
				}
			case folder.Name() == index.ViewsDir || !known && !strings.HasPrefix(file.Name(), "."):
				err = fmt.Errorf("%s has %s/%s that nobody needs", m, folder.Name(), file.Name())
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAside has a folder that has stepped aside be an orphan by its record, or have been one.
func (b *book) checkAside(m *member, name string) error {
	for r, err := range b.farm.catalog.List(context.Background(), content.KindSnapshot, "", "") {
		if err != nil {
			return err
		}
		ref, err := content.ParseRef("snapshot:" + r.Name)
		if err != nil {
			return err
		}
		for id := range b.byID {
			if ref.Orphan && filepath.Base(m.index.Aside(id, ref.Seq)) == name {
				return nil
			}
		}
	}
	return fmt.Errorf("%s has put %s aside, and no snapshot was ever called so", m, name)
}

// onlyBut is an error unless it is the one that is expected.
func onlyBut(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// excused reports whether an error says no more than that something can't be done now, by
// what has befallen a member, or that another was quicker.
func excused(err error) bool {
	for _, why := range []error{
		content.ErrUnavailable, content.ErrConflict, content.ErrExists, content.ErrFenced, content.ErrNotFound, content.ErrClosed,
		bucket.ErrUnknown, bucket.ErrPrecondition, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, why) && !errors.Is(err, content.ErrCorrupt) {
			return true
		}
	}
	return false
}
