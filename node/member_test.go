package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestSecondNode is kept out of a folder, which is ready for work then.
func TestSecondNode(t *testing.T) {
	first := &Node{cfg: Config{Dir: t.TempDir()}}
	if err := first.openDir(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := &Node{cfg: first.cfg}
	if err := second.openDir(t.Context()); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "another grange has it open") {
		t.Errorf("a second node: %v", err)
	}
	if err := first.unlock(); err != nil {
		t.Fatal(err)
	}
	if err := second.openDir(t.Context()); err != nil {
		t.Errorf("after the first: %v", err)
	}
	if err := second.unlock(); err != nil {
		t.Error(err)
	}
}
