package ublk

import (
	"cmp"
	"fmt"
	"log/slog"
	"runtime"

	"github.com/grangemesh/grange/origin/content"
)

// The defaults of Config, and the kernel's bounds.
const (
	// threadsDefaultMax: a thread answers hundreds of thousands of hits a second;
	// more than these would take processors from the guests.
	threadsDefaultMax = 4
	// queuesDefaultMax lets one device use two processors.
	queuesDefaultMax = 2
	// depthDefault is the depth of a good NVMe queue as guests drive it.
	depthDefault = 64
	// requestMax is the longest request in bytes: beyond it nothing is gained, and
	// each that waits takes that much of the heap at worst.
	requestMax = 512 << 10

	threadsMax = 64
	queuesMax  = 4096
	depthMax   = 4096
)

// Config is what a Server needs. Owner must be set; other zero values mean their
// defaults.
type Config struct {
	// Owner marks this server's disks in the kernel, beside the mark of the device
	// that each was made for: what has both is taken up, and what has the first is
	// swept, by the next server with the same Owner; all else is left alone.
	Owner uint32
	// Threads serve all queues. Half as many as the process may use processors, at
	// least 1 and at most 4: a busy one keeps its processor to itself.
	Threads int
	// Queues of each new device; the kernel gives no more than it has processors.
	// As many as Threads, at most 2.
	Queues int
	// Depth is how many requests of a queue are in flight at most. 64.
	Depth int

	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Threads = cmp.Or(c.Threads, min(max(runtime.GOMAXPROCS(0)/2, 1), threadsDefaultMax))
	c.Queues = cmp.Or(c.Queues, min(c.Threads, queuesDefaultMax))
	c.Depth = cmp.Or(c.Depth, depthDefault)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}

func (c Config) validate() error {
	invalid := func(what string, is, least, most int) error {
		return fmt.Errorf("ublk: %w: %s is %d, want %d to %d", content.ErrInvalid, what, is, least, most)
	}
	switch {
	case c.Owner == 0:
		return fmt.Errorf("ublk: %w: no Owner", content.ErrInvalid)
	case c.Threads < 1 || c.Threads > threadsMax:
		return invalid("Threads", c.Threads, 1, threadsMax)
	case c.Queues < 1 || c.Queues > queuesMax:
		return invalid("Queues", c.Queues, 1, queuesMax)
	case c.Depth < 1 || c.Depth > depthMax:
		return invalid("Depth", c.Depth, 1, depthMax)
	}
	return nil
}
