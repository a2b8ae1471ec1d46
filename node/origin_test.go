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
	o := newOrigin(Config{Log: slog.New(slog.DiscardHandler)}, nil, nil, nil)
	o.settle(nil)
	for _, err := range []error{
		fmt.Errorf("read: %w: %w", content.ErrUnavailable, context.Canceled),
		fmt.Errorf("read: %w", content.ErrNotFound),
	} {
		if o.lost(err); len(o.doubt) > 0 {
			t.Errorf("after %v it is looked at", err)
		}
	}
	if o.lost(fmt.Errorf("read: %w", content.ErrUnavailable)); len(o.doubt) != 1 || o.view().State != originOK {
		t.Errorf("looked at: %d, %+v", len(o.doubt), o.view())
	}
}
