// Package checks runs what hashes and keeps objects beside who reads them from the
// network.
package checks

import (
	"runtime"
	"sync"
)

// Pool has a place for each object that is hashed and kept.
type Pool chan struct{}

// New returns a pool with as many places as there are cores, and as many again for those
// that the disk holds up.
func New() Pool { return make(Pool, 2*runtime.GOMAXPROCS(0)) }

// Run does a check of a group, once there is a place: who reads on waits for that. One
// that is urgent, as a guest waits for it, needs none.
func (p Pool) Run(group *sync.WaitGroup, urgent bool, check func()) {
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
