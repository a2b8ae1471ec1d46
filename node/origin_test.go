package node

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestCallersThatGoAway say nothing of the origin; one that does not answer is looked
// at, and is well until that look says otherwise.
func TestCallersThatGoAway(t *testing.T) {
	n := &Node{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	n.origin = newOrigin(n)
	o := n.origin
	o.settle(nil)
	for _, err := range []error{
		fmt.Errorf("read: %w: %w", content.ErrUnavailable, context.Canceled),
		fmt.Errorf("read: %w", content.ErrNotFound),
	} {
		if o.lost(err); len(o.doubt) > 0 {
			t.Errorf("after %v it is looked at", err)
		}
	}
	if o.lost(fmt.Errorf("read: %w", content.ErrUnavailable)); len(o.doubt) != 1 || n.Origin().State != originOK {
		t.Errorf("looked at: %d, %+v", len(o.doubt), n.Origin())
	}
}
