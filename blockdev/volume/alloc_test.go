//go:build !race

package volume

import (
	"bytes"
	"io"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// TestPromptAllocatesNothing: hits are too many for the garbage collector. Under the
// race detector pools drop a part of what they are given.
func TestPromptAllocatesNothing(t *testing.T) {
	v := open(t, create(t), nil)
	defer v.Close()
	p, request := make([]byte, 2*extents.Unit), bytes.NewReader(make([]byte, 2*extents.Unit))
	var w io.WriterAt = make(window, 2*extents.Unit)
	batch := []blockdev.Write{{Data: p}, {Data: p[:extents.Unit], Offset: 16 * extents.Unit}}
	ctx := t.Context()
	must(t, v.WriteAt(ctx, p, 0, false))
	for name, prompt := range map[string]func() bool{
		"TryReadAt":     func() bool { return v.TryReadAt(p, 0) },
		"TryReadTo":     func() bool { return v.TryReadTo(w, 2*extents.Unit, 0) },
		"WriteAt":       func() bool { return v.WriteAt(ctx, p, 0, false) == nil },
		"TryWriteBatch": func() bool { return v.TryWriteBatch(batch) == len(batch) },
		"TryWriteFrom":  func() bool { return v.TryWriteFrom(request, 2*extents.Unit, 0) },
	} {
		if n := testing.AllocsPerRun(500, func() {
			if !prompt() {
				t.Errorf("%s: not at once", name)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
