package volumes

import (
	"bytes"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
)

// TestForkOfASnapshotBesideAFold: a snapshot whose place came while a fold made the root that
// is under it by now begins a fork with all that it was.
func TestForkOfASnapshotBesideAFold(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	var was []byte
	p.a.cfg.At = func(step string) {
		if step == "fold "+string(fold.StepPacked) && was == nil {
			p.a.fill(t, "disk", shadow, 3, 2)
			was = bytes.Clone(shadow)
			if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
				t.Error(err)
			}
			p.a.fill(t, "disk", shadow, 3, 3)
		}
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "fork", Spec{From: refOf(t, "snapshot:disk@1")})
	p.a.is(t, "fork", was)
}
