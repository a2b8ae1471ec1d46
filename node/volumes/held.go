package volumes

import (
	"context"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// HeldError says that another has a volume, and what whoever wants it has to know to
// decide. It is [content.Held].
type HeldError struct {
	// Holder is the node that has it, as people call it, with its ID.
	Holder string
	// Policy is what a flush of the volume means there.
	Policy string
	// FoldedAt is when the bucket last got all that was written; zero when it never has.
	FoldedAt time.Time
	// Text is what to do.
	Text string
}

// Error implements error.
func (e *HeldError) Error() string { return content.Held.Error() + ": " + e.Text }

// Unwrap says what kind of error it is.
func (e *HeldError) Unwrap() error { return content.Held }

// held is the conflict with who holds a name by its record.
func (v *Volumes) held(ctx context.Context, r catalog.Record, body catalog.Volume) error {
	who, _ := v.cfg.Holder(ctx, body.Holder)
	return &HeldError{Holder: who, Policy: body.Policy, FoldedAt: body.FoldedAt, Text: v.holding(ctx, r, body)}
}
