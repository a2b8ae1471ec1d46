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

// Group are the checks of what one request brings, in the order of their coming: requests
// are many, and what they bring comes in turns. Run and Wait are called by one at a time.
type Group struct {
	places Places
	urgent bool
	most   int // checks
	work   sync.WaitGroup
	checks chan func()
}

// Group returns one for so many checks at most. In an urgent one nothing waits for a place,
// as a guest waits for it.
func (p Places) Group(most int, urgent bool) *Group {
	return &Group{places: p, most: most, urgent: urgent}
}

// Run does a check, once there is a place: who reads on waits for that.
func (g *Group) Run(check func()) {
	if g.checks == nil { // one goroutine for all: its stack has grown after the first
		g.checks = make(chan func(), g.most)
		g.work.Go(func() {
			for check := range g.checks {
				check()
				if !g.urgent {
					<-g.places
				}
			}
		})
	}
	if !g.urgent {
		g.places <- struct{}{}
	}
	g.checks <- check
}

// Wait waits for all checks. None is run after it.
func (g *Group) Wait() {
	if g.checks != nil {
		close(g.checks)
		g.work.Wait()
	}
}
