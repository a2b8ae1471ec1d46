package volumes

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestSnapshotsOnThisDiskAreKept makes more of them than anything else remembers, while the
// bucket is away and without a start in between: each reads as the volume was, and gets there.
func TestSnapshotsOnThisDiskAreKept(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	var states [][]byte
	for n := range uint64(6) {
		p.a.fill(t, "disk", shadow, 12, n)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil { // of the same place
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(shadow), bytes.Clone(shadow))
	}
	for _, id := range []uint64{2, 4} { // one of two of a place goes
		if err := p.a.RemoveSnapshot(t.Context(), content.Ref{Kind: content.KindSnapshot, Name: "disk", Seq: id}.RecordName()); err != nil {
			t.Fatal(err)
		}
		states[id-1] = nil
	}
	check := func(when string) {
		t.Helper()
		for n, want := range states {
			if want != nil && !bytes.Equal(p.a.exported(t, fmt.Sprintf("snapshot:disk@%d", n+1)), want) {
				t.Errorf("%s: snapshot %d reads other bytes", when, n+1)
			}
		}
	}
	check("here")
	if err := p.a.Settle(t.Context(), "disk@1", nil); err != nil {
		t.Fatal(err)
	}
	check("in the bucket")
}
