package garbage

import (
	"context"
	"errors"
)

// Run is one run of a collection: it marks, deletes what a run before has marked and is dead still, and gives tombstones to
// what is dead by now. It takes the next epoch of the collection's record: a run of another member that is at it is
// content.Running, and one that another has overtaken ends with content.ErrFenced, having deleted nothing since. Where
// anything is not understood, or contradicts itself, it deletes nothing. It may be ended at any time, and begun again.
func Run(ctx context.Context, cfg Config) (Report, error) { return Report{}, errors.New("not yet") }
