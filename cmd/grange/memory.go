package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// memoryShare of what the node may take is for the Go heap and its stacks; the
	// rest is for what the runtime does not count, such as the maps of files.
	memoryShare = 0.9
	// memoryMin is the least that --memory may say: less is garbage collection alone.
	memoryMin = 128 << 20
)

// limitMemory has the garbage collector keep the process within --memory, or else its
// cgroup's limit, if there is one. GOMEMLIMIT in the environment comes before both.
func limitMemory(limit size, log *slog.Logger) error {
	provider := memlimit.FromCgroup
	switch {
	case limit != 0 && limit < memoryMin:
		return fmt.Errorf("%w: --memory %s: want at least %s", errUsage, humanBytes(int64(limit)), humanBytes(memoryMin))
	case limit != 0:
		provider = memlimit.Limit(uint64(limit))
	}
	got, err := memlimit.Set(memlimit.WithProvider(provider), memlimit.WithRatio(memoryShare))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported), err == nil && got == math.MaxInt64:
	case err != nil:
		log.Debug("the memory limit of this node's cgroup is not known; --memory gives one", "err", err)
	default:
		log.Info("memory is limited", "heap", humanBytes(got))
	}
	return nil
}
