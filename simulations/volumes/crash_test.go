package volumes

import (
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/soak"
)

// TestKilledNodeKeepsWhatItAcknowledged: a client writes and flushes without pause, and the
// node is killed, again and again. Back, it has all that it has acknowledged and nothing
// that was never written.
func TestKilledNodeKeepsWhatItAcknowledged(t *testing.T) {
	f := newFarm(t, 1)
	n := f.nodes[0]
	w := newWriter(1<<20, 1)
	device := f.create(n, "web", "--size", "1MiB")
	for round := range soak.Rounds(100) {
		f.writeUntil(w, device, 20, n.Kill)
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		disk := f.contents(device)
		if err := w.lost(disk); err != nil {
			t.Fatalf("round %d, after %d flushes: %v", round, w.flush, err)
		}
		w.seen(disk)
	}
	t.Logf("%d flushes were acknowledged, none was lost", w.flush)
}

// TestWriterSeesLosses: the check that others trust in finds a write that is gone, one
// that nobody made, and a block in another's place.
func TestWriterSeesLosses(t *testing.T) {
	w := newWriter(64<<10, 1)
	for at := range w.last {
		w.count++
		w.last[at] = w.count
	}
	copy(w.acked, w.last)
	if err := w.lost(w.disk()); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(disk []byte){
		"was acknowledged":  func(disk []byte) { fill(disk[:sector], 0, 0) },
		"the last was":      func(disk []byte) { fill(disk[block:][:sector], 1, 99) },
		"nobody has writte": func(disk []byte) { copy(disk[:block], disk[block:][:block]) },
	} {
		disk := w.disk()
		spoil(disk)
		if err := w.lost(disk); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
