package node

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestCallersThatGoAway say nothing of the origin; one that does not answer is lost.
func TestCallersThatGoAway(t *testing.T) {
	n := &Node{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	n.origin = newOrigin(n)
	o := n.origin
	o.settle(nil)
	for _, err := range []error{
		fmt.Errorf("read: %w: %w", content.ErrUnavailable, context.Canceled),
		fmt.Errorf("read: %w", content.ErrNotFound),
	} {
		if o.lost(err); n.Origin().State != originOK {
			t.Errorf("after %v: %+v", err, n.Origin())
		}
	}
	if o.lost(fmt.Errorf("read: %w", content.ErrUnavailable)); n.Origin().State != originUnreachable {
		t.Errorf("%+v", n.Origin())
	}
}
