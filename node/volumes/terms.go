package volumes

import "github.com/grangemesh/grange/node/volumes/terms"

// What volumes are asked for with, and what is told of them: see package terms.
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
