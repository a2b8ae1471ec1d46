package holders

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

// TestSweep: what a record says is not needed goes, and nothing else: not what is young,
// of a later epoch, or of a record that can't be read.
func TestSweep(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	d.must(w, l.pieceOf(claim(2), 0, 0))
	d.must(w, l.pieceOf(claim(2), 1, 0))
	later := time.Now().Add(2 * sweepAfter)
	said := Said{ID: theVolume, Epoch: 2, Holder: true, Base: l.segs[0].end()}
	sweep := func(now time.Time, err error) int {
		return d.Sweep(t.Context(), now, func(_ context.Context, name string) (Said, error) {
			if name != "web1" {
				t.Errorf("record of %q", name)
			}
			return said, err
		})
	}
	if n := sweep(later, nil); n != 0 {
		t.Fatal("swept what the record names this holder for")
	}
	if held := d.must(w, wire.Status{Claim: claim(2)}); len(held.Segments) != 1 || held.Base != said.Base {
		t.Errorf("%+v, want what the record has dropped", held)
	}
	with := func(change func(*Said)) int {
		old := said
		defer func() { said = old }()
		change(&said)
		return sweep(later, nil)
	}
	said.Holder = false
	for what, n := range map[string]int{
		"young": sweep(time.Now(), nil), "unknown": sweep(later, content.ErrUnavailable),
		"promised to a later epoch":        with(func(s *Said) { s.Epoch, s.Version = 1, 9 }),
		"of a name that others had before": with(func(s *Said) { s.ID[0]++; s.Version = 1 }),
		"of a name that was free before":   with(func(s *Said) { *s = Said{Version: 1} }),
	} {
		if n != 0 {
			t.Errorf("swept what is %s", what)
		}
	}
	d.kill() // nobody has spoken since, so that the promise tells the time
	if n := sweep(later, nil); n != 1 {
		t.Error("what no record needs was not swept")
	}
	if used, n := d.Used(); used != 0 || n != 0 {
		t.Errorf("%d bytes of %d volumes are left", used, n)
	}
}

// TestSweepOfTheDead: the space of volumes comes free whose name was freed, or is another's
// since, and of those that no record names, though they are damaged.
func TestSweepOfTheDead(t *testing.T) {
	for what, said := range map[string]Said{
		"freed": {Version: 2}, "made again": {Version: 3, ID: content.VolumeID{9}, Epoch: 3, Holder: true}, "left": {Version: 2, ID: theVolume, Epoch: 2},
	} {
		for _, damaged := range []bool{false, true} {
			l, w := threeSegments(), someone("north")
			d := newDisk(t)
			d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
			for i := range l.segs {
				d.must(w, l.pieceOf(claim(2), i, 0))
			}
			if damaged {
				segments, err := filepath.Glob(filepath.Join(d.dir, "*", "*"+journal.Suffix))
				if err != nil || len(segments) != 3 {
					t.Fatal(segments, err)
				}
				if err := os.Remove(segments[1]); err != nil {
					t.Fatal(err)
				}
			}
			d.kill()
			n := d.Sweep(t.Context(), time.Now().Add(2*sweepAfter), func(context.Context, string) (Said, error) { return said, nil })
			left, err := os.ReadDir(d.dir)
			if used, volumes := d.Used(); n != 1 || used != 0 || volumes != 0 || len(left) > 0 || err != nil {
				t.Errorf("%s, damaged %t: %d went, %d bytes of %d volumes are left, in %v; %v", what, damaged, n, used, volumes, left, err)
			}
			_ = d.Close()
		}
	}
}

// TestSweepBesideAWriter: who comes again while the record is read, which does not name the holder
// yet, finds what it has brought, although the claim is the same.
func TestSweepBesideAWriter(t *testing.T) {
	l, w, d := threeSegments(), someone("north"), newDisk(t)
	promise := wire.Promise{Claim: claim(2), Name: "web1", Begin: true}
	d.must(w, promise)
	d.Sweep(t.Context(), time.Now().Add(sweepAfter), func(context.Context, string) (Said, error) {
		d.must(w, promise)
		d.must(w, l.pieceOf(claim(2), 0, 0))
		return Said{Version: 2, ID: theVolume, Epoch: 2}, nil
	})
	if held := d.must(w, wire.Status{Claim: claim(2)}); len(held.Segments) != 1 {
		t.Errorf("%+v, want what the writer has brought", held)
	}
	_ = d.Close()
}

// TestSweepAfterAStart: what a record has got since goes, too, where nobody has asked the holder
// for anything since it started.
func TestSweepAfterAStart(t *testing.T) {
	l, w, d := threeSegments(), someone("north"), newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	d.must(w, l.pieceOf(claim(2), 0, 0))
	d.kill()
	d.Sweep(t.Context(), time.Now().Add(2*sweepAfter), func(context.Context, string) (Said, error) {
		return Said{Version: 2, ID: theVolume, Epoch: 2, Holder: true, Base: l.segs[0].end()}, nil
	})
	if used, _ := d.Used(); used != 0 {
		t.Errorf("%d bytes are left that the bucket has", used)
	}
	_ = d.Close()
}

// TestDamagedNotesGo: what is held by a note that nobody can read, or by none, stays for long
// enough to be saved, and not for ever.
func TestDamagedNotesGo(t *testing.T) {
	for _, damage := range []func(path string) error{os.Remove, func(path string) error { return os.Truncate(path, 20) }} {
		d, w := newDisk(t), someone("north")
		d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
		d.must(w, threeSegments().pieceOf(claim(2), 0, 0))
		_ = d.Close()
		if err := damage(filepath.Join(d.dir, theVolume.String(), noteName)); err != nil {
			t.Fatal(err)
		}
		d.open()
		ask := func(context.Context, string) (Said, error) { return Said{}, content.ErrUnavailable }
		if went := d.Sweep(t.Context(), time.Now().Add(damagedAfter/2), ask); went != 0 {
			t.Error("it went at once")
		}
		went := d.Sweep(t.Context(), time.Now().Add(damagedAfter+time.Hour), ask)
		if used, n := d.Used(); went != 1 || used != 0 || n != 0 {
			t.Errorf("%d went, and %d bytes of %d volumes are held", went, used, n)
		}
	}
}

// TestDamageFreesNobody: who comes with an epoch that is over is refused where what is held since is
// damaged, too, and takes none of it away.
func TestDamageFreesNobody(t *testing.T) {
	l, w := threeSegments(), someone("north")
	d := newDisk(t)
	d.must(w, wire.Promise{Claim: claim(2), Name: "web1", Begin: true})
	for i := range 3 {
		d.must(w, l.pieceOf(claim(2), i, 0))
	}
	if err := os.Remove(filepath.Join(d.dir, theVolume.String(), "0000000000000001-0000000000000002.seg")); err != nil {
		t.Fatal(err)
	}
	d.kill()
	for range 2 {
		if _, _, err := d.tell(w, wire.Promise{Claim: claim(1), Name: "web1", Begin: true}); !errors.Is(err, content.ErrFenced) {
			t.Errorf("an epoch that is over: %v", err)
		}
	}
	if _, _, err := d.tell(w, wire.Promise{Claim: claim(3), Name: "web1", Begin: true}); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("a later one: %v", err)
	}
	d.must(w, wire.Promise{Claim: claim(3), Name: "web1", Begin: true})
}
