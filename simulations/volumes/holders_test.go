package volumes

import (
	"os"
	"testing"
)

// TestFarmSurvivesItsWriter: under farm:2 the node that writes a volume is killed under
// load, and its folder removed; another one takes the volume over and has each flush that
// was acknowledged, with none of it in the bucket. So it goes on, twice: the second time
// from a holder that has come since.
func TestFarmSurvivesItsWriter(t *testing.T) {
	f := newFarm(t, 4)
	const size = 4 << 20
	w := newWriter(size, 7)
	device := f.create(f.nodes[0], "web", "--size", "4MiB", "--durability", "farm:2")
	for i, next := range f.nodes[1:3] {
		victim := f.nodes[i]
		f.writeUntil(w, device, 20, func() error {
			if err := victim.Kill(); err != nil {
				return err
			}
			return os.RemoveAll(victim.Data)
		})
		device = f.run(next, "volume", "attach", "web", "--takeover", "--transport", "nbd")
		disk := f.contents(device)
		if err := w.lost(disk); err != nil {
			t.Fatalf("takeover %d, after %d flushes: %v", i+1, w.flush, err)
		}
		w.seen(disk)
	}
}
