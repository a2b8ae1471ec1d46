// Package checks runs what hashes and keeps objects beside who reads them from the
// network.
package checks

import (
	"runtime"
	"sync"
)

// Places are had by the objects that are hashed and kept, one each.
type Places chan struct{}

// New returns as many places as there are cores, and as many again for those
// that the disk holds up.
func New() Places { return make(Places, 2*runtime.GOMAXPROCS(0)) }

// Run does a check of a group, once there is a place: who reads on waits for that. One
// that is urgent, as a guest waits for it, needs none.
func (p Places) Run(group *sync.WaitGroup, urgent bool, check func()) {
	if urgent {
		group.Go(check)
		return
	}
	p <- struct{}{}
	group.Go(func() {
		check()
		<-p
	})
}
