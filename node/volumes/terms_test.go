package volumes

import "github.com/grangemesh/grange/node/volumes/terms"

// Words of package terms, which tests say often.
type (
	Spec         = terms.Spec
	Limits       = terms.Limits
	SnapshotSpec = terms.SnapshotSpec
	RemoveSpec   = terms.RemoveSpec
	PromoteSpec  = terms.PromoteSpec
	Progress     = terms.Progress
	View         = terms.View
	SnapshotView = terms.SnapshotView
	HeldError    = terms.HeldError
)
