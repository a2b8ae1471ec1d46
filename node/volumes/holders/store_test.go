package holders

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/golden"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var theVolume = content.VolumeID{1, 2, 3}

// someone is a member of a farm.
func someone(farm string) exchange.Peer {
	k := trust.NewPrivateKey().Public()
	return exchange.Peer{ID: identity.PeerID(k), Identity: trust.Identity{Key: k, Role: trust.RoleNode, Farm: farm}}
}

// disk is a store on storage that forgets what was not synced.
type disk struct {
	t      testing.TB
	dir    string
	mu     sync.Mutex
	synced map[string]int64 // by name, of the file; guarded by mu
	broken error            // of a sync; guarded by mu
	fail   func(step) error
	*Store
}

func newDisk(t testing.TB) *disk {
	d := &disk{t: t, dir: t.TempDir(), synced: map[string]int64{}}
	d.open()
	return d
}

func (d *disk) open() {
	d.t.Helper()
	s, err := Open(StoreConfig{
		Dir: d.dir, Farm: "north",
		sync: func(f *os.File) error {
			info, err := f.Stat()
			d.mu.Lock()
			defer d.mu.Unlock()
			if err = cmp.Or(err, d.broken); err == nil {
				d.synced[strings.TrimSuffix(f.Name(), newSuffix)] = info.Size()
			}
			return err
		},
		fail: func(s step) error {
			if d.fail != nil {
				return d.fail(s)
			}
			return nil
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Store = s
}

// kill ends the store as kill -9 does, and starts it again.
func (d *disk) kill() {
	d.t.Helper()
	_ = d.Close() // closing syncs nothing, and writes nothing
	d.open()
}

// wipe has it lose all that it had.
func (d *disk) wipe() {
	d.t.Helper()
	_ = d.Close()
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Fatal(err)
	}
	d.open()
}

// cutPower ends it, and what was not synced is lost: the ends of files have anything.
func (d *disk) cutPower(random *rand.Rand) {
	d.t.Helper()
	_ = d.Close()
	d.mu.Lock()
	err := filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == noteName {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		kept := min(d.synced[strings.TrimSuffix(path, newSuffix)], info.Size())
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := kept + random.Int64N(info.Size()-kept+1)
		for i := kept; i < to; i++ {
			if random.IntN(4) == 0 {
				b[i] = byte(random.Uint32())
			}
		}
		return os.WriteFile(path, b[:to], 0o600)
	})
	d.mu.Unlock()
	if err != nil {
		d.t.Fatal(err)
	}
	d.open()
}

func (d *disk) tell(from exchange.Peer, m wire.Message) (*wire.Held, []byte, error) {
	return d.Take(from, m)(d.t.Context())
}

// must is tell that succeeds.
func (d *disk) must(from exchange.Peer, m wire.Message) *wire.Held {
	d.t.Helper()
	held, _, err := d.tell(from, m)
	if err != nil {
		d.t.Fatalf("%T: %v", m, err)
	}
	return held
}

func claim(epoch uint64) wire.Claim {
	return wire.Claim{Volume: theVolume, Epoch: epoch, Incarnation: 100 + epoch}
}

// threeSegments is a journal of two epochs.
func threeSegments() *line {
	l := newLine(theVolume)
	for i := range uint64(4) {
		l.write(1, i)
	}
	l.roll(1)
	for i := range uint64(3) {
		l.write(1, 10+i)
	}
	for i := range uint64(5) {
		l.write(2, 20+i)
	}
	return l
}

// TestPrefixOnly: a holder takes what follows what it has, at once or in any pieces, and
// nothing with a hole before it.
func TestPrefixOnly(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	if _, _, err := d.tell(w, l.pieceOf(claim(2), 0, 0)); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("bytes before a promise: %v", err)
	}
	if held := d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true}); len(held.Segments) > 0 || held.Claim != claim(2) {
		t.Errorf("a new holder has %+v", held)
	}
	for _, gap := range []wire.Extend{l.pieceOf(claim(2), 1, 0), l.pieceOf(claim(2), 0, 1)} {
		if held := d.must(w, gap); held == nil || held.End() != (content.Position{}) {
			t.Errorf("a gap was taken: %+v", held)
		}
	}
	whole := l.pieceOf(claim(2), 0, 0)
	part := whole
	part.Bytes, part.Seq = whole.Bytes[:journal.HeaderSize+entrySize+7], 0
	if held := d.must(w, part); held != nil {
		t.Fatalf("the first part: %+v", held)
	}
	next := l.pieceOf(claim(2), 1, 0)
	if held := d.must(w, next); held == nil || held.End().Seq != 0 {
		t.Errorf("a segment was begun behind one that is not whole: %+v", held)
	}
	d.must(w, whole) // has what is there already too
	for range 2 {
		if held := d.must(w, next); held != nil {
			t.Errorf("the next: %+v", held)
		}
		if held := d.must(w, l.pieceOf(claim(2), 2, 0)); held != nil {
			t.Errorf("the last: %+v", held)
		}
	}
	held := d.must(w, wire.Status{Claim: claim(2)})
	if held.End() != l.End() || len(held.Segments) != 3 || held.Segments[0].Through.Seq != 4 {
		t.Errorf("%+v, want all up to %v", held, l.End())
	}
	other := l.pieceOf(claim(2), 2, 0)
	other.Bytes = bytes.Clone(other.Bytes)
	other.Bytes[len(other.Bytes)-1] ^= 1
	if _, _, err := d.tell(w, other); !errors.Is(err, content.ErrConflict) {
		t.Errorf("other bytes for what it has: %v", err)
	}
	if used, n := d.Used(); n != 1 || used != held.Segments[0].Bytes+held.Segments[1].Bytes+held.Segments[2].Bytes {
		t.Errorf("%d bytes of %d volumes", used, n)
	}
}

// TestPromises: nothing is taken for an epoch that is over, or for another start of a
// process in the same, over restarts too.
func TestPromises(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	d.must(w, l.pieceOf(claim(2), 0, 0))
	clone := claim(2)
	clone.Incarnation++
	for range 2 {
		for _, c := range []wire.Claim{claim(1), clone} {
			if _, _, err := d.tell(w, wire.Promise{Claim: c}); !errors.Is(err, content.ErrFenced) {
				t.Errorf("promised to %v: %v", c, err)
			}
		}
		d.kill()
	}
	if _, _, err := d.tell(w, l.pieceOf(claim(2), 1, 0)); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("a holder that has just started takes bytes without a word: %v", err)
	}
	if held := d.must(someone("north"), wire.Promise{Claim: claim(3)}); held.End().Seq != 4 {
		t.Errorf("the heir is told of %+v", held)
	}
	for _, m := range []wire.Message{l.pieceOf(claim(2), 1, 0), wire.Promise{Claim: claim(2)}, wire.Cut{Claim: claim(2)}, wire.Drop{Claim: claim(2), All: true}, wire.Read{Claim: claim(2), Length: 1}} {
		if _, _, err := d.tell(w, m); !errors.Is(err, content.ErrFenced) {
			t.Errorf("%T of an epoch that is over: %v", m, err)
		}
	}
	if _, _, err := d.tell(w, wire.Promise{Claim: wire.Claim{Volume: content.VolumeID{9}, Epoch: 7}}); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a holder that has nothing promises: %v", err)
	}
}

// TestStrangersHoldNothing: members of another farm, and those who are none, are refused
// whatever they ask.
func TestStrangersHoldNothing(t *testing.T) {
	d := newDisk(t)
	seed := someone("north")
	seed.Identity.Role = trust.RoleSeed
	for _, from := range []exchange.Peer{someone("south"), seed, {}} {
		for _, m := range []wire.Message{wire.Promise{Claim: claim(1), Begin: true}, wire.Status{Claim: claim(1)}, wire.Extend{Claim: claim(1)}} {
			if _, _, err := d.tell(from, m); !errors.Is(err, content.ErrForbidden) {
				t.Errorf("%T from %+v: %v", m, from.Identity, err)
			}
		}
	}
}

// TestSwappedVolumes: bytes of one volume are refused for another's, though the places fit.
func TestSwappedVolumes(t *testing.T) {
	w, d := someone("north"), newDisk(t)
	other := newLine(content.VolumeID{9})
	other.write(1, 5)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true, Ancestors: []content.VolumeID{{8}}})
	if _, _, err := d.tell(w, other.pieceOf(claim(2), 0, 0)); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("another volume's segment: %v", err)
	}
	ancestor := newLine(content.VolumeID{8})
	ancestor.write(1, 5)
	if held := d.must(w, ancestor.pieceOf(claim(2), 0, 0)); held != nil {
		t.Errorf("its ancestor's: %+v", held)
	}
	own := newLine(theVolume)
	own.segs = append(own.segs, ancestor.segs[0])
	own.write(2, 6)
	if held := d.must(w, own.pieceOf(claim(2), 1, 0)); held != nil {
		t.Errorf("its own behind that: %+v", held)
	}
	d.must(w, wire.Promise{Claim: claim(3), Name: "web1"}) // an heir's, which knows of no ancestors yet
	d.must(w, wire.Cut{Claim: claim(3)})
	if held := d.must(w, ancestor.pieceOf(claim(3), 0, 0)); held != nil {
		t.Errorf("its ancestor's, from who inherits: %+v", held)
	}
	wrong := own.pieceOf(claim(3), 1, 0)
	wrong.Claim.Volume = content.VolumeID{9}
	if _, _, err := d.tell(w, wrong); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("at a holder of another volume: %v", err)
	}
}

// holdingThree holds three segments for a writer of the second epoch.
func holdingThree(t *testing.T) (*disk, exchange.Peer) {
	l, w, d := threeSegments(), someone("north"), newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	for i := range 3 {
		d.must(w, l.pieceOf(claim(2), i, 0))
	}
	return d, w
}

// TestCut: what a later epoch did not inherit goes, and what it wrote itself never does.
func TestCut(t *testing.T) {
	d, w := holdingThree(t)
	at := wire.Place{Epoch: 1, Number: 2, Offset: journal.HeaderSize + entrySize}
	d.must(w, wire.Promise{Claim: claim(3)})
	for range 2 {
		d.must(w, wire.Cut{Claim: claim(3), At: at, Seq: 5})
		if held := d.must(w, wire.Status{Claim: claim(3)}); held.End() != (content.Position{Number: 2, Seq: 5}) {
			t.Fatalf("%+v", held)
		}
	}
	short := threeSegments()
	short.segs = short.segs[:2]
	short.segs[1].says = short.segs[1].says[:1]
	short.write(3, 77)
	if held := d.must(w, short.pieceOf(claim(3), 2, 0)); held != nil {
		t.Fatalf("the heir's own: %+v", held)
	}
	if _, _, err := d.tell(w, wire.Cut{Claim: claim(3), At: at, Seq: 5}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("what the epoch wrote itself was cut: %v", err)
	}
	d.kill()
	if held := d.must(w, wire.Promise{Claim: claim(3)}); held.End() != short.End() {
		t.Errorf("%+v, want %v", held, short.End())
	}
}

// TestCutThatIsNotSynced: what a loss of power may bring back is not cut, however often that is
// asked for.
func TestCutThatIsNotSynced(t *testing.T) {
	d, w := holdingThree(t)
	d.must(w, wire.Promise{Claim: claim(3)})
	d.mu.Lock()
	d.broken = syscall.EIO
	d.mu.Unlock()
	for range 2 {
		if _, _, err := d.tell(w, wire.Cut{Claim: claim(3), At: wire.Place{Epoch: 1, Number: 2, Offset: journal.HeaderSize + entrySize}, Seq: 5}); !errors.Is(err, syscall.EIO) {
			t.Errorf("%v", err)
		}
	}
}

// TestDrop: what the record has goes, and what follows it is taken where a holder has
// nothing left.
func TestDrop(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	d.must(w, l.pieceOf(claim(2), 0, 0))
	d.must(w, l.pieceOf(claim(2), 1, 0))
	base := l.segs[1].end()
	d.must(w, wire.Drop{Claim: claim(2), Base: base})
	d.kill()
	if held := d.must(w, wire.Promise{Claim: claim(2)}); held.End() != base || len(held.Segments) > 0 || held.Base != base {
		t.Fatalf("%+v", held)
	}
	last := l.pieceOf(claim(2), 2, 0)
	last.Before = 0
	if held := d.must(w, last); held != nil {
		t.Fatalf("what follows the base: %+v", held)
	}
	d.must(w, wire.Drop{Claim: claim(2), All: true})
	if used, n := d.Used(); used != 0 || n != 0 {
		t.Errorf("%d bytes of %d volumes are left", used, n)
	}
	if _, _, err := d.tell(w, wire.Promise{Claim: claim(2)}); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a promise of what was dropped: %v", err)
	}
}

// TestRoom: a holder that is full says so, and what it has stays.
func TestRoom(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	d.cfg.Quota = journal.HeaderSize + 5*entrySize
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	d.must(w, l.pieceOf(claim(2), 0, 0))
	if _, _, err := d.tell(w, l.pieceOf(claim(2), 1, 0)); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("over the quota: %v", err)
	}
	if held := d.must(w, wire.Status{Claim: claim(2)}); held.End().Seq != 4 {
		t.Errorf("%+v", held)
	}
}

// TestMissingSegmentIsNoEnd: a holder whose disk lost a segment, or its promise, is of no
// use, and does not look like one that never had it; the last one is missing when the note
// says more.
func TestMissingSegmentIsNoEnd(t *testing.T) {
	for _, lost := range []string{"0000000000000001-0000000000000001.seg", "0000000000000001-0000000000000002.seg", noteName} {
		l, w := threeSegments(), someone("north")
		d := newDisk(t)
		d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
		for i := range 3 {
			d.must(w, l.pieceOf(claim(2), i, 0))
		}
		if err := os.Remove(filepath.Join(d.dir, theVolume.String(), lost)); err != nil {
			t.Fatal(err)
		}
		d.kill()
		if held, _, err := d.tell(w, wire.Promise{Claim: claim(3)}); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("without %s: %+v, %v", lost, held, err)
		}
	}
}

// steps reads the names of the failpoints from the code.
func steps(t *testing.T) (out []step) {
	f, err := parser.ParseFile(token.NewFileSet(), "store.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 && strings.HasPrefix(v.Names[0].Name, "step") {
			if text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value); err == nil {
				out = append(out, step(text))
			}
		}
		return true
	})
	if len(out) < 8 {
		t.Fatalf("only %d steps found", len(out))
	}
	return out
}

var errCrash = errors.New("crash")

// TestCrashAtEachStep has a holder take, cut, rebase and drop, crash at each step, by
// kill -9 and by a loss of power, and then go on: what was answered for is there.
func TestCrashAtEachStep(t *testing.T) {
	reached := map[step]bool{}
	for _, at := range steps(t) {
		for _, power := range []bool{false, true} {
			for nth := range 4 {
				random := rand.New(rand.NewPCG(uint64(nth), 7))
				crashAt(t, at, nth, power, random, reached)
			}
		}
		if !reached[at] {
			t.Errorf("nothing comes by %q: it has no test", at)
		}
	}
}

func crashAt(t *testing.T, at step, nth int, power bool, random *rand.Rand, reached map[step]bool) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	defer func() { _ = d.Close() }()
	crashed := false
	seen := 0
	d.fail = func(s step) error {
		if s == at && !crashed {
			if seen++; seen > nth {
				crashed, reached[at] = true, true
			}
		}
		if crashed {
			return errCrash
		}
		return nil
	}
	answered := content.Position{} // all up to there was answered for
	base := content.Position{}
	dropped := false
	epoch := uint64(2)
	script := []struct {
		m    wire.Message
		done func()
	}{
		{wire.Promise{Claim: claim(2), Name: "web1", Begin: true}, func() {}},
		{l.pieceOf(claim(2), 0, 0), func() { answered = l.segs[0].end() }},
		{l.pieceOf(claim(2), 1, 0), func() { answered = l.segs[1].end() }},
		{l.pieceOf(claim(2), 2, 0), func() { answered = l.segs[2].end() }},
		{wire.Drop{Claim: claim(2), Base: l.segs[0].end()}, func() { base = l.segs[0].end() }},
		{wire.Promise{Claim: claim(3)}, func() { epoch = 3 }},
		{wire.Cut{Claim: claim(3), At: wire.Place{Epoch: 1, Number: 2, Offset: journal.HeaderSize + entrySize}, Seq: 5}, func() {}},
		{wire.Drop{Claim: claim(3), All: true}, func() { dropped = true }},
	}
	for i, s := range script {
		if _, cut := s.m.(wire.Cut); cut { // from here on nothing behind it counts
			answered = content.Position{Number: 2, Seq: 5}
		}
		_, _, err := d.tell(w, s.m)
		if err == nil {
			s.done()
		}
		if !crashed {
			if err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			continue
		}
		crashed, d.fail = false, nil
		if power {
			d.cutPower(random)
		} else {
			d.kill()
		}
		what := fmt.Sprintf("crash %d at %q in %d (power %v)", nth, at, i, power)
		held, _, err := d.tell(w, wire.Promise{Claim: claim(epoch), Name: "web1", Begin: i == 0})
		if errors.Is(err, content.ErrFenced) && i == 5 { // it was promised, and nobody heard it
			held, _, err = d.tell(w, wire.Promise{Claim: claim(3)})
		}
		switch {
		case dropped || i == len(script)-1:
			if err != nil && !errors.Is(err, content.ErrNotFound) {
				t.Fatalf("%s: %v", what, err)
			}
			return
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		case held.End().Seq < answered.Seq || held.Base.Seq < base.Seq:
			t.Fatalf("%s: it has %+v, and answered for %v", what, held, answered)
		}
		if i == 0 || epoch == 3 || held.Claim.Epoch == 3 {
			return
		}
		for j := range l.segs { // what comes again is taken, and so is the rest
			if l.segs[j].number <= held.Base.Number {
				continue
			}
			m := l.pieceOf(claim(2), j, 0)
			if j > 0 && l.segs[j-1].number <= held.Base.Number {
				m.Before = 0
			}
			if gap := d.must(w, m); gap != nil {
				t.Fatalf("%s: afterwards: %+v", what, gap)
			}
		}
		if held := d.must(w, wire.Status{Claim: claim(2)}); held.End() != l.End() {
			t.Fatalf("%s: afterwards: %+v", what, held)
		}
		return
	}
}

// TestNotWhole: who is being filled in place of what was lost promises itself to another
// only when it has all that was asked for; over a crash, too.
func TestNotWhole(t *testing.T) {
	d, l, w := newDisk(t), threeSegments(), someone("north")
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true, Whole: l.End().Seq})
	for i := range 3 {
		d.kill()
		if _, _, err := d.tell(w, wire.Promise{Claim: claim(3)}); !errors.Is(err, content.ErrNotFound) {
			t.Fatalf("in part: %v", err)
		}
		d.must(w, l.pieceOf(claim(2), i, 0))
	}
	if held := d.must(w, wire.Promise{Claim: claim(3)}); held.End() != l.End() {
		t.Fatalf("%+v", held)
	}
}

func TestNote(t *testing.T) {
	n := note{claim: claim(7), base: content.Position{Number: 3, Seq: 900}, writer: trust.PublicKey{5}, whole: 950, name: "web1", ancestors: []content.VolumeID{{8}, {9}}}
	golden.Check(t, "note.golden", n.encode())
	if got, err := decodeNote(n.encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(n) {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzNote: no bytes make the decoder panic, and what it takes is the one encoding.
func FuzzNote(f *testing.F) {
	golden.Seeds(f, "note.golden")
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := decodeNote(b); err == nil && !bytes.Equal(n.encode(), b) {
			t.Errorf("%+v", n)
		}
	})
}

// Used is what is held, in bytes, and for how many volumes.
func (s *Store) Used() (used int64, volumes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used.Load(), len(s.volumes)
}
