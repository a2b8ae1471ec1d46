package instance

import (
	"bufio"
	"fmt"
	"os"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// Limits are what instances may take of this host; 0 is no limit.
type Limits struct {
	Instances int
	// Memory and Disk bound what all that the host runs takes, with what a new instance is expected to.
	Memory, Disk Share
}

// Share is a number of bytes, or a part of all that there is.
type Share struct {
	Bytes int64
	Part  float64 // 0 to 1; 0 where Bytes counts
}

// of is the share of what there is.
func (s Share) of(total int64) int64 {
	if s.Part > 0 {
		return int64(s.Part * float64(total))
	}
	return s.Bytes
}

// usage is what of the host is in use, of how much.
type usage struct {
	instances                int
	memory, allMemory        int64
	disk, allDisk            int64
	promised, promisedOnDisk int64 // to instances that do not take it yet
}

// admits fails with the figures when a limit does not let another instance in.
func (l Limits) admits(now usage, spec terms.Spec) error {
	memory, disk := l.Memory.of(now.allMemory), l.Disk.of(now.allDisk)
	switch {
	case l.Instances > 0 && now.instances >= l.Instances:
		return fmt.Errorf("%w: this node has %d instances, as many as it may", content.ErrUnavailable, now.instances)
	case memory > 0 && spec.Memory > memory-now.memory-now.promised:
		return fmt.Errorf("%w: it is expected to take %d bytes of memory; %d of this host's %d are in use or promised, and %d may be", content.ErrUnavailable, spec.Memory, now.memory+now.promised, now.allMemory, memory)
	}
	if disk > 0 && spec.Disk > disk-now.disk-now.promisedOnDisk {
		return fmt.Errorf("%w: it is expected to take %d bytes of disk; %d of %d are in use or promised, and %d may be", content.ErrNoSpace, spec.Disk, now.disk+now.promisedOnDisk, now.allDisk, disk)
	}
	return nil
}

// admit fails when a limit does not let another instance in.
func (h *Hub) admit(spec terms.Spec) error {
	here := h.snapshot()
	now := usage{instances: len(here)}
	for _, i := range here {
		if e, _ := i.now(); e.Process == nil { // what runs is in what is in use
			now.promised += e.Spec.Memory
			if e.State == "" || e.State == state.Provisioning {
				now.promisedOnDisk += e.Spec.Disk
			}
		}
	}
	err := durable.MkdirAll(h.cfg.Dir, 0o700) // on the disk that is looked at
	if err == nil {
		now.disk, now.allDisk, err = diskOf(h.cfg.Dir)
	}
	if err != nil {
		return fmt.Errorf("look how much is in use: %w", err)
	}
	now.memory, now.allMemory = memory()
	return h.cfg.Limits.admits(now, spec)
}

// diskOf is how much is in use of the disk that a folder is on, of how much.
func diskOf(dir string) (used, all int64, err error) {
	free, total, err := cache.DiskFree(dir)
	return int64(total - free), int64(total), err
}

// memory is how much of the host's is in use, of how much, see proc(5); zeros where that can't be told.
func memory() (used, all int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	available := int64(0)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &all)
		_, _ = fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &available)
	}
	return (all - available) << 10, all << 10
}
