package main

import (
	"fmt"

	"github.com/grangemesh/grange/node/images/follow"
)

// followFlags are of the commands that keep names warm.
type followFlags struct {
	Follow []follow.Pattern `help:"Keep these images warm: fetched, kept, and brought up to date when the name stands for another. A pattern is a name with *, ? or [a-z]." placeholder:"image:NAME,tag:TAG,PATTERN,…"`
}

// Validate refuses more than a node can look after.
func (f *followFlags) Validate() error {
	if len(f.Follow) > follow.PatternsMax {
		return fmt.Errorf("--follow: %d names and patterns; a node follows %d at most, of which one with * may stand for many", len(f.Follow), follow.PatternsMax)
	}
	return nil
}
