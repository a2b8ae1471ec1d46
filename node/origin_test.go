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
	o := newOrigin(&Node{cfg: Config{Log: slog.New(slog.DiscardHandler)}})
	o.settle(nil)
	for _, err := range []error{
		fmt.Errorf("read: %w: %w", content.ErrUnavailable, context.Canceled),
		fmt.Errorf("read: %w", content.ErrNotFound),
	} {
		if o.lost(err); o.info().State != originOK {
			t.Errorf("after %v: %+v", err, o.info())
		}
	}
	if o.lost(fmt.Errorf("read: %w", content.ErrUnavailable)); o.info().State != originUnreachable {
		t.Errorf("%+v", o.info())
	}
}
