package ublk_test

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/simulations/soak"
)

const (
	many = 200
	// atOnce is how many disks are made or removed side by side: the kernel waits
	// for its own grace periods most of that time.
	atOnce = 20
)

// addMany makes disks of one device.
func addMany(t *testing.T, s *ublk.Server) []*ublk.Disk {
	t.Helper()
	disks := make([]*ublk.Disk, many)
	group := new(errgroup.Group)
	group.SetLimit(atOnce)
	device := newMemory(1 << 20)
	for i := range disks {
		group.Go(func() (err error) {
			disks[i], err = s.Add(t.Context(), -1, 0, device)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return disks
}

func stopMany(t *testing.T, disks []*ublk.Disk) {
	t.Helper()
	group := new(errgroup.Group)
	group.SetLimit(atOnce)
	for _, d := range disks {
		group.Go(func() error { return d.Stop(t.Context(), false) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// held is what this process and the kernel hold for disks.
type held struct {
	files, goroutines, nodes, mappings int
	threads                            []string
	heap                               int // KiB in use
}

func holding(t *testing.T) held {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	count := func(pattern string) int {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	h := held{files: count("/proc/self/fd/*"), goroutines: runtime.NumGoroutine(), nodes: count("/dev/ublk[bc]*"), threads: deviceThreads(t)}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	h.heap = int(stats.HeapAlloc >> 10)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	h.mappings = strings.Count(string(maps), "\n")
	return h
}

// deviceThreads returns the folders in /proc of the threads that serve disks.
func deviceThreads(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(tasks, func(task string) bool {
		name, err := os.ReadFile(filepath.Join(task, "comm"))
		return err != nil || !strings.HasPrefix(string(name), "ublk-")
	})
}

// TestManyDisks makes 200 disks that cost nothing while nobody uses them, and removes them,
// again and again: they leave nothing.
func TestManyDisks(t *testing.T) {
	serve(t, ublk.Config{Owner: another, Threads: 2}) // costs nothing, either
	s, _ := serve(t, ublk.Config{Threads: 4, Queues: 2})
	disks := addMany(t, s) // what is kept for good is there after one round
	idle(t)
	stopMany(t, disks)
	before := holding(t)
	for range soak.Of(1, 10) {
		stopMany(t, addMany(t, s))
	}
	after := holding(t)
	t.Logf("before %+v, after %+v", before, after)
	// A few files and goroutines come and go with the test's own commands.
	if after.files > before.files || after.nodes != 0 || len(after.threads) != 6 || after.goroutines > before.goroutines {
		t.Errorf("left: %+v, before %+v", after, before)
	}
	// A disk has two mappings; the runtime has some more when it is busy.
	if after.mappings > before.mappings+many/2 || after.heap > before.heap+many {
		t.Errorf("memory is left: %+v, before %+v", after, before)
	}
}

// idle counts how often the threads run that serve disks which nobody uses: never, once
// the disks' first reads are told to the meter.
func idle(t *testing.T) {
	t.Helper()
	const watch = 10 * time.Second // twice as long as anything is put off
	deadline := time.After(time.Minute)
	for {
		before := runs(t)
		<-time.After(watch)
		after := runs(t)
		if len(after) > 0 && maps.Equal(before, after) {
			return
		}
		select {
		case <-deadline:
			t.Errorf("in %v threads have run: %v, before %v", watch, after, before)
			return
		default:
		}
	}
}

// runs counts how often each thread that serves disks has begun to run.
func runs(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, thread := range deviceThreads(t) {
		status, err := os.ReadFile(filepath.Join(thread, "status"))
		if err != nil {
			continue // one of a server that has just ended
		}
		_, switches, ok := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		if !ok {
			t.Fatalf("the kernel does not say how often %s ran: %s", thread, status)
		}
		out[thread] = switches
	}
	return out
}
