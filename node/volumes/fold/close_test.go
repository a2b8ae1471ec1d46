package fold

import (
	"errors"
	"os"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestClosedTailsKeepNoFile: a volume is closed while the fate of a tail is not known.
func TestClosedTailsKeepNoFile(t *testing.T) {
	w := newWorld(t)
	w.newTails(content.Position{})
	w.failing(func(mem.Call) mem.Fault { return mem.Fault{Err: bucket.ErrUnknown} })
	w.write(1, 1)
	if err := w.flush(); err == nil {
		t.Fatal("it was flushed")
	}
	file := w.tails.next.file
	w.tails.Close()
	if _, err := file.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("its file is open: %v", err)
	}
}
