package volumes

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// A disk of the model is a word for each sector, with which that is full; zeros at its end
// are left out. Each write has a word of its own, so that no two states of a disk are alike
// but for those that have been emptied.
type disk []uint64

const modelSector = content.SectorSize

// readDisk reads what a device has.
func readDisk(size int64, read func(p []byte, off int64) error) (disk, error) {
	p := make([]byte, size)
	if err := read(p, 0); err != nil {
		return nil, err
	}
	out := make(disk, size/modelSector)
	for i := range out {
		sector := p[i*modelSector : (i+1)*modelSector]
		out[i] = binary.LittleEndian.Uint64(sector)
		for off := 8; off < modelSector; off += 8 {
			if binary.LittleEndian.Uint64(sector[off:]) != out[i] {
				return nil, fmt.Errorf("sector %d is of two writes, or of none", i)
			}
		}
	}
	return out.trimmed(), nil
}

func (d disk) at(i int) uint64 {
	if i < len(d) {
		return d[i]
	}
	return 0
}

func (d disk) trimmed() disk {
	n := len(d)
	for n > 0 && d[n-1] == 0 {
		n--
	}
	return d[:n]
}

// with is the disk after a write of n sectors at one.
func (d disk) with(at, n int, word uint64) disk {
	out := make(disk, max(len(d), at+n))
	copy(out, d)
	for i := range n {
		out[at+i] = word
	}
	return out.trimmed()
}

// bytesOf are n sectors of a word.
func bytesOf(n int, word uint64) []byte {
	p := make([]byte, n*modelSector)
	for off := 0; off < len(p); off += 8 {
		binary.LittleEndian.PutUint64(p[off:], word)
	}
	return p
}

// imageDisk is the image of the shelf.
func imageDisk() disk {
	out := make(disk, imageSize/modelSector)
	for i := range out {
		out[i] = uint64(i*modelSector/content.ChunkSizeDefault+1) * 0x0101010101010101
	}
	return out
}

// state is what a disk was at one moment, after another one.
type state struct {
	before *state
	disk   disk
}

// has reports whether a state is another, or has come after it.
func (s *state) has(earlier *state) bool {
	for ; s != nil; s = s.before {
		if s == earlier {
			return true
		}
	}
	return false
}

// find returns the latest state with a disk, of one and those before it.
func (s *state) find(d disk) *state {
	for ; s != nil && !slices.Equal(s.disk, d); s = s.before {
	}
	return s
}

// modelVolume is a volume as the reference has it.
type modelVolume struct {
	name   string
	id     content.VolumeID
	called string   // by its record
	size   int64    // that a call has said to be there
	born   []*state // one of which it begins as

	owner    *place // who has written it last under a right
	released bool   // what the owner had is in the bucket, and anybody may take it
	passed   bool   // the record names another than the owner
	promised *state // what a takeover has at least
	folded   *state // what the bucket has at least
	places   map[*member]*place
	behind   []*place // what stayed with those that it was taken from
	snaps    map[uint64]*modelSnap
	naming   *state   // what a snapshot is of whose number was not told
	policies []string // of which its record says one; nil is not looked at
	rolling  []*state // of which whoever serves it next may bring it back to one
	removed  bool     // its name is free, or another's
	back     *state   // which the bucket has by now
	there    bool     // it has, or had, a record
	going    bool     // its record goes, or went
	purged   bool     // its snapshots do
}

// asked is a change of policy, that is done or may be. One that may be the policy already is
// answered without the origin: it stays in doubt.
func (v *modelVolume) asked(policy string, done bool) {
	if done && !slices.Contains(v.policies, policy) {
		v.policies = nil
	}
	v.policies = append(v.policies, policy)
}

// place is what a member has of a volume.
type place struct {
	m      *member
	device *volume.Volume // that was looked at last
	epoch  uint64
	now    *state
	maybe  []*state // that it may be as well
	synced *state   // what a loss of power leaves at least
	torn   bool     // it had one since
	mixed  bool     // it was left in the middle of a rollback, or removed
}

// may are the states that it may have been left with.
func (p *place) may() []*state { return append([]*state{p.now}, p.maybe...) }

// modelSnap is a snapshot.
type modelSnap struct {
	state   *state
	at      *place // that has it, while it is not durable
	durable bool
	going   bool // it may be gone
}

// book is all that the reference knows.
type book struct {
	farm    *farm
	byID    map[content.VolumeID]*modelVolume
	making  map[string]*modelVolume // names of volumes that are, or may be, made: without an ID
	word    uint64
	well    bool               // all is, and nodes have tended to what they have
	acks    map[string]*member // who has acknowledged under an epoch of a name
	epochs  map[string]uint64  // of a name, the last
	stamps  map[string]string  // of each epoch of a name: who has it
	looked  map[string]string  // records that were looked at, by name: their ETag
	flushes int
	taken   int // takeovers
	kills   int
	deeds   map[string]int // that went well
}

func newBook(f *farm) *book {
	return &book{
		farm: f, byID: map[content.VolumeID]*modelVolume{}, making: map[string]*modelVolume{}, acks: map[string]*member{}, epochs: map[string]uint64{},
		stamps: map[string]string{}, looked: map[string]string{}, deeds: map[string]int{},
	}
}

// reborn is a volume whose name others have freed, and taken, before who made it heard that it
// was registered: it has another name, and what that node has of it.
func (v *modelVolume) reborn(m *member) {
	if p := v.places[m]; p != nil {
		born := p.now
		for born.before != nil {
			born = born.before
		}
		v.owner, v.promised, v.folded, v.passed, v.released, v.going, v.purged = p, born, born, false, false, false, false
	}
}

// settle holds what a member serves to what it may be.
func (b *book) settle(m *member, a *attached) error {
	e, ok := m.index.Get(a.Name())
	if !ok {
		return nil
	}
	v := b.volumeOf(e.Name, e.ID)
	if v == nil {
		return fmt.Errorf("%s has a volume %q that nobody has made", m, e.Name)
	}
	g := a.vol.Geometry()
	found, err := readDisk(g.Size, func(p []byte, off int64) error { return a.front.ReadAt(context.Background(), p, off) })
	if err != nil {
		return fmt.Errorf("%s, volume %q: %w", m, e.Name, err)
	}
	if v.owner != nil && v.owner.m == m && g.Size < v.size {
		return fmt.Errorf("%s, volume %q has %d bytes, and was grown to %d", m, e.Name, g.Size, v.size)
	}
	p := v.places[m]
	_, body, st := a.record()
	switch {
	case v.owner == nil:
		err = b.settleBorn(v, m, found)
	case p != nil && p.device == a.vol:
		err = p.settleSame(found)
	case pick(v.rolling, found) != nil && body.Holder == m.key && body.Rolling == 0:
		b.settleRolled(v, m, found)
	case p == v.owner && v.passed && body.Holder == m.key: // it may have been another's in between, of which nobody has seen anything
		left := *p
		if err = p.settleAgain(found); err != nil {
			err = b.settleTaken(v, m, found)
		} else if body.Epoch != left.epoch { // with its own disk, or with another beside that
			v.behind = append(v.behind, &left)
		}
	case p != nil && (p == v.owner || body.Holder != m.key || body.Epoch == p.epoch):
		err = p.settleAgain(found)
	default:
		err = b.settleTaken(v, m, found)
	}
	if err != nil {
		return fmt.Errorf("%s, volume %q (%s, epoch %d): %w", m, e.Name, st.Stage, body.Epoch, err)
	}
	p = v.places[m]
	v.name, p.device = e.Name, a.vol
	if p == v.owner && body.Holder == m.key {
		p.epoch = body.Epoch
		v.rolling, v.back = nil, nil // it was rolled back by now, or is not any more: what is written from here on stays
	}
	return nil
}

func (b *book) volumeOf(name string, id content.VolumeID) *modelVolume {
	v := b.byID[id]
	if v == nil {
		if v = b.making[name]; v != nil {
			delete(b.making, name)
			v.id, b.byID[id] = id, v
		}
	}
	return v
}

func pick(states []*state, d disk) *state {
	for _, s := range states {
		if slices.Equal(s.disk, d) {
			return s
		}
	}
	return nil
}

// settleBorn is of a volume that is served for the first time.
func (b *book) settleBorn(v *modelVolume, m *member, d disk) error {
	s := pick(v.born, d)
	if s == nil {
		return fmt.Errorf("it begins as something else than it was made from")
	}
	v.owner = &place{m: m, now: s, synced: s}
	v.places[m] = v.owner
	if v.promised == nil || !s.has(v.promised) {
		v.promised = s
	}
	if v.folded == nil || !s.has(v.folded) {
		v.folded = v.promised
	}
	return nil
}

// settleSame is of a device that was looked at before.
func (p *place) settleSame(d disk) error {
	s := pick(p.may(), d)
	if s == nil {
		return fmt.Errorf("it reads other bytes than were written")
	}
	p.now, p.maybe = s, nil
	return nil
}

// settleAgain is of a member that goes on with its own folder.
func (p *place) settleAgain(d disk) error {
	var s *state
	for _, from := range p.may() {
		if s = from.find(d); s != nil && s.has(p.synced) && (p.torn || s == from) {
			break
		}
		s = nil
	}
	if s == nil {
		return fmt.Errorf("after a start it is not as it was left (after a loss of power: %t)", p.torn)
	}
	p.now, p.synced, p.maybe, p.torn = s, s, nil, false
	return nil
}

// settleRolled is of a member that has brought the volume back to a snapshot.
func (b *book) settleRolled(v *modelVolume, m *member, d disk) {
	s := v.rolledBack(d)
	if v.owner.m != m || v.passed { // what it had before it was another's is beside it
		v.owner.mixed = true
		v.behind = append(v.behind, v.owner)
		v.owner = &place{m: m}
		v.places[m], v.released, v.passed = v.owner, false, false
	}
	v.owner.now, v.owner.synced, v.owner.maybe, v.owner.torn, v.rolling, v.back = s, s, nil, false, nil, nil
}

// rolledBack is what a volume is once it was brought back to a disk: one state, whether the bucket
// or a member shows it first.
func (v *modelVolume) rolledBack(d disk) *state {
	if v.back == nil || !slices.Equal(v.back.disk, d) {
		v.back = &state{v.owner.now, d}
	}
	return v.back
}

// settleTaken is of a member that has the volume from another.
func (b *book) settleTaken(v *modelVolume, m *member, d disk) error {
	var s *state
	for _, from := range v.owner.may() {
		if s = from.find(d); s != nil && s.has(v.promised) && (!v.released || s == from || s == v.folded) { // who released it may have gone on, and not known that
			break
		}
		s = nil
	}
	if s == nil {
		return fmt.Errorf("what %s had, and others were promised, is not what it took (released: %t)", v.owner.m, v.released)
	}
	if !v.released {
		b.taken++
	}
	v.owner.maybe = append(v.owner.maybe, v.rolling...) // on its disk, if the record heard nothing of it
	v.behind = append(v.behind, v.owner)                // who released it may not know, and go on
	v.owner = &place{m: m, now: s, synced: s}
	v.places[m], v.released, v.passed, v.promised = v.owner, false, false, s
	return nil
}

// acknowledge is a flush that a member has answered.
func (b *book) acknowledge(v *modelVolume, m *member, a *attached) error {
	p := v.places[m]
	_, body, st := a.record()
	epoch := fmt.Sprintf("%s epoch %d of %s", v.name, body.Epoch, v.id)
	if who := b.acks[epoch]; who != nil && who != m && st.Stage != "uncommitted" {
		return fmt.Errorf("%s and %s have both acknowledged under %s", who, m, epoch)
	}
	b.acks[epoch] = m
	b.flushes++
	if a != m.device(v.name) {
		return fmt.Errorf("%s has acknowledged a flush of %q by a device that it serves no more", m, v.name)
	}
	p.synced = p.now
	if body.Policy == catalog.PolicyLocal || !body.DegradedSince.IsZero() || v.promised.has(p.now) { // nothing is new
		return nil
	}
	if v.owner != p && v.owner.now.has(p.now) { // its holders had all of it before they promised themselves
		return nil
	}
	if v.removed { // by another and by force, which asks no holder: this disk keeps it, as an orphan
		return nil
	}
	// Who comes while the owner is not seen to be another has it, or is found out when it serves.
	if now, err := b.farm.said(v.name); v.owner != p && (err != nil || stampText(now) != stampText(body) || now.ID != v.id) {
		return fmt.Errorf("%s has acknowledged a flush of %q as %s (%s), and the record says %s, %v", m, v.name, stampText(body), body.Policy, stampText(now), err)
	}
	v.promised = p.now
	return nil
}

// said is what the record of a volume says at the origin.
func (f *farm) said(name string) (catalog.Volume, error) {
	r, err := ledger{f.catalog}.Volume(context.Background(), name)
	if err != nil {
		return catalog.Volume{}, err
	}
	return catalog.DecodeVolume(content.NewCodec(), r.Body)
}

func stampText(body catalog.Volume) string {
	return fmt.Sprintf("epoch %d of %x by %s", body.Epoch, body.Incarnation, body.Holder)
}
