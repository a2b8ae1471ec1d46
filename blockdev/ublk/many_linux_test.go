package ublk_test

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
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

// TestManyDisksLeaveNothing makes and removes 200 disks again and again.
func TestManyDisksLeaveNothing(t *testing.T) {
	s, _ := serve(t, ublk.Config{Threads: 4, Queues: 2})
	stopMany(t, addMany(t, s)) // what is kept for good is there after one round
	before := holding(t)
	for range soak.Rounds(10) {
		stopMany(t, addMany(t, s))
	}
	after := holding(t)
	t.Logf("before %+v, after %+v", before, after)
	// A few files and goroutines come and go with the test's own commands.
	if after.files > before.files || after.nodes != 0 || len(after.threads) != 4 || after.goroutines > before.goroutines {
		t.Errorf("left: %+v, before %+v", after, before)
	}
	// A disk has two mappings; the runtime has some more when it is busy.
	if after.mappings > before.mappings+many/2 || after.heap > before.heap+many {
		t.Errorf("memory is left: %+v, before %+v", after, before)
	}
}

// TestIdleCostsNothing counts the processor time of the threads of two servers,
// one without disks and one with 200 that nobody uses.
func TestIdleCostsNothing(t *testing.T) {
	const (
		watch  = 30 * time.Second
		settle = 12 * time.Second // until the disks' first reads are told to the meter
	)
	old := deviceThreads(t) // of servers that have just ended
	serve(t, ublk.Config{Owner: another, Threads: 2})
	s, _ := serve(t, ublk.Config{Threads: 2})
	defer stopMany(t, addMany(t, s))
	threads := slices.DeleteFunc(deviceThreads(t), func(thread string) bool { return slices.Contains(old, thread) })
	if len(threads) != 4 {
		t.Fatalf("threads %v, want 4", threads)
	}
	<-time.After(settle)
	before := make(map[string]int)
	for _, thread := range threads {
		before[thread] = ticks(t, thread)
	}
	<-time.After(watch)
	for _, thread := range threads {
		if n := ticks(t, thread) - before[thread]; n > 0 {
			t.Errorf("thread %s: %d ticks in %v", thread, n, watch)
		}
	}
}

// ticks is the processor time of a thread, in hundredths of a second.
func ticks(t *testing.T, thread string) int {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join(thread, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from the third, the state, on
	sum := 0
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
