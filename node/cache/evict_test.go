package cache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// clock is a time that the test moves.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

// pass moves the time, and has the cache look at it.
func (k *clock) pass(c *Cache, d time.Duration) {
	k.now = k.now.Add(d)
	c.tick()
}

func build(t testing.TB, cfg Config) *Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Quota == 0 {
		cfg.Quota = quotaMin
	}
	if cfg.ScrubRate == 0 {
		cfg.ScrubRate = -1
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestScanDoesNotEvictWhatIsUsed reads a disk of five times the cache once, in
// small reads as a guest does, while a working set is used now and then.
func TestScanDoesNotEvictWhatIsUsed(t *testing.T) {
	k := newClock()
	c := build(t, Config{Now: func() time.Time { return k.now }})
	var hot []content.Verified
	for n := range 400 {
		hot = append(hot, object(n, 128<<10))
		put(t, c, hot[n])
	}
	p := make([]byte, 4096)
	for n := range 10000 {
		v := object(1000+n, 128<<10)
		put(t, c, v)
		for off := 0; off < 128<<10; off += 4096 {
			if err := c.ReadAt(v.CID(), p, off); err != nil {
				t.Fatal(err)
			}
		}
		if n%500 == 0 { // the working set is used once in a quarter of the cache
			k.pass(c, periodLength)
			for _, v := range hot {
				if err := c.ReadAt(v.CID(), p, 0); err != nil && !errors.Is(err, content.ErrNotFound) {
					t.Fatal(err)
				}
			}
		}
	}
	left := 0
	for _, v := range hot {
		if c.Has(v.CID()) {
			left++
		}
	}
	if left < len(hot) {
		t.Errorf("%d of %d used chunks survived a scan", left, len(hot))
	}
	check(t, c)
}

// TestRemovalsAreCounted: each object is here, or counted as gone.
func TestRemovalsAreCounted(t *testing.T) {
	c := build(t, Config{})
	sizes := []int{1000, 40 << 10, 128 << 10, 1 << 20}
	var all []content.Verified
	rng := rand.New(rand.NewPCG(1, 1))
	for n := range 2500 {
		all = append(all, object(n, sizes[rng.IntN(len(sizes))]))
		put(t, c, all[n])
	}
	c.Evict(32 << 20)
	gone := 0
	for _, v := range all {
		if !c.Has(v.CID()) {
			gone++
		}
	}
	if uint64(gone) != c.Evicted() || gone == 0 {
		t.Errorf("%d objects are gone, and %d counted", gone, c.Evicted())
	}
	check(t, c)
	if n := leaked(c); n > 0 {
		t.Errorf("%d slots are taken by nothing", n)
	}
}

// TestSizesShareTheQuota fills the cache with one size, then puts another: its
// share follows.
func TestSizesShareTheQuota(t *testing.T) {
	c := build(t, Config{})
	for n := range 3000 {
		put(t, c, object(n, 128<<10))
	}
	for n := range 1000 {
		put(t, c, object(10000+n, 1<<20))
		put(t, c, object(20000+n, 30<<10))
	}
	big := 0
	for n := range 1000 {
		if c.Has(object(10000+n, 1<<20).CID()) {
			big++
		}
	}
	if big < 100 {
		t.Errorf("%d of 1000 large objects are here, in 256 MiB", big)
	}
	if st := c.Stats(); st.Disk > st.Quota {
		t.Errorf("%d bytes, the quota is %d", st.Disk, st.Quota)
	}
	check(t, c)
}

// TestAllPinned: what is pinned stays, newcomers are passed on, and nothing
// takes long.
func TestAllPinned(t *testing.T) {
	c := build(t, Config{})
	var ids []content.CID
	for n := range 2048 {
		ids = append(ids, object(n, 128<<10).CID())
	}
	if err := c.Pin("all", 0, slices.Values(ids)); err != nil {
		t.Fatal(err)
	}
	for n := range 2048 {
		put(t, c, object(n, 128<<10))
	}
	for n := range 100 {
		if err := c.Put(object(5000+n, 128<<10), ReachMesh); !errors.Is(err, content.ErrNoSpace) {
			t.Fatalf("Put beside pins that take all: %v, want ErrNoSpace", err)
		}
	}
	if st := c.Stats(); st.Pinned != 2048 || !st.Full {
		t.Errorf("%+v", st)
	}
	if err := c.Unpin("all"); err != nil {
		t.Fatal(err)
	}
	put(t, c, object(9000, 128<<10))
	check(t, c)
}

// TestIndexGrows puts more objects than the table was made for, while readers
// read.
func TestIndexGrows(t *testing.T) {
	c := build(t, Config{})
	first := len(c.table.Load().words)
	pinned := object(0, 9000)
	if err := c.Pin("one", 0, slices.Values([]content.CID{pinned.CID()})); err != nil {
		t.Fatal(err)
	}
	put(t, c, pinned)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 9000)
		for {
			select {
			case <-stop:
				return
			default:
				if err := c.ReadAt(pinned.CID(), p, 0); err != nil || !bytes.Equal(p, pinned.Bytes()) {
					t.Errorf("read while the table grows: %v, or other bytes", err)
					return
				}
			}
		}
	})
	for n := range 12000 {
		put(t, c, object(1+n, 100+n))
	}
	close(stop)
	wg.Wait()
	st := c.Stats()
	if last := len(c.table.Load().words); last < 4*first || c.Evicted() > 12 { // two full buckets for one object are rare, not impossible
		t.Errorf("%d entries grew to %d; %+v", first, last, st)
	}
	check(t, c)
}

// TestFullBuckets has a table that can't grow: objects displace each other.
func TestFullBuckets(t *testing.T) {
	c := build(t, Config{})
	c.cramped = true
	all := map[content.CID]content.Verified{}
	for n := range 6000 {
		v := object(n, 100)
		all[v.CID()] = v
		put(t, c, v)
	}
	check(t, c)
	if n := leaked(c); n > 0 {
		t.Errorf("%d slots are taken by nothing", n)
	}
	if n, most := c.Stats().Chunks, int64(len(c.table.Load().words)); n < most*15/16 {
		t.Errorf("%d objects in a table of %d", n, most)
	}
	for _, v := range all {
		if c.Has(v.CID()) {
			expect(t, c, v)
		}
	}
}

func TestRotIsFoundTheNextDay(t *testing.T) {
	k := newClock()
	c := build(t, Config{Now: func() time.Time { return k.now }})
	v, w := object(1, 128<<10), object(2, 5000)
	for _, v := range []content.Verified{v, w} {
		put(t, c, v)
		expect(t, c, v)
		rot(t, c, v.CID(), 4097)
	}
	for range 5 { // the numbers of the days come round
		k.pass(c, recheckAfter)
		c.forgetChecks()
	}
	for _, v := range []content.Verified{v, w} {
		if err := c.ReadAt(v.CID(), make([]byte, 1), 0); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("read of a rotten chunk that was checked days ago: %v, want ErrCorrupt", err)
		}
		if err := c.ReadAt(v.CID(), make([]byte, 1), 0); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("read of a chunk that was dropped: %v, want ErrNotFound", err)
		}
		put(t, c, v)
		expect(t, c, v)
	}
	rot(t, c, v.CID(), 0)
	if _, err := c.Get(v.CID(), nil); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("Get of a rotten chunk: %v, want ErrCorrupt, checked or not", err)
	}
}

func TestScrubFindsRot(t *testing.T) {
	c := build(t, Config{ScrubRate: 1 << 30})
	var all []content.Verified
	for n := range 100 {
		all = append(all, object(n, 10<<10))
		put(t, c, all[n])
	}
	rot(t, c, all[77].CID(), 5)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- c.Run(ctx) }()
	for tick := time.NewTicker(time.Millisecond); c.Has(all[77].CID()); <-tick.C {
	}
	if n := c.Stats().Chunks; n != 99 {
		t.Errorf("%d chunks are here after the scrub of 100 with a bad one", n)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := c.Put(all[77], ReachMesh); !errors.Is(err, content.ErrClosed) {
		t.Errorf("Put after Run: %v, want ErrClosed", err)
	}
	if err := c.ReadAt(all[0].CID(), make([]byte, 1), 0); !errors.Is(err, content.ErrClosed) {
		t.Errorf("ReadAt after Run: %v, want ErrClosed", err)
	}
}

// TestUnreadableDisk: what the disk does not give is absent, and kept anew in
// another slot.
func TestUnreadableDisk(t *testing.T) {
	c := build(t, Config{})
	v, w := object(1, 128<<10), object(2, 128<<10)
	put(t, c, v)
	put(t, c, w)
	bad := slotOf(t, c, v.CID()).at
	good := *c.files.Load()
	closed, err := os.Open(filepath.Join(c.cfg.Dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	c.files.Store(&[]*os.File{closed})
	if err := c.ReadAt(v.CID(), make([]byte, 1), 0); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("read of a broken disk: %v, want ErrNotFound", err)
	}
	if err := c.Put(object(3, 128<<10), ReachMesh); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("Put on a broken disk: %v, want ErrNoSpace", err)
	}
	c.files.Store(&good)
	put(t, c, v)
	expect(t, c, v)
	expect(t, c, w)
	if slotOf(t, c, v.CID()).at == bad {
		t.Error("the bad slot was used again")
	}
	check(t, c)
}

func TestRangesOfAChunk(t *testing.T) {
	c := build(t, Config{})
	for n, size := range []int{128 << 10, 100} {
		v := object(n, size)
		put(t, c, v)
		for _, r := range []struct{ off, n int }{{-1, 1}, {0, size + 1}, {size, 1}, {size + 1, 0}, {1 << 62, 1}} {
			if err := c.ReadAt(v.CID(), make([]byte, r.n), r.off); !errors.Is(err, content.ErrInvalid) {
				t.Errorf("%d bytes at %d of %d: %v, want ErrInvalid", r.n, r.off, size, err)
			}
		}
		if err := c.ReadAt(v.CID(), nil, size); err != nil {
			t.Errorf("nothing at the end: %v", err)
		}
	}
	for _, size := range []int{0, content.ChunkSizeMax + 1} {
		if err := c.Put(content.Seal(make([]byte, size)), ReachMesh); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("Put of %d bytes: %v, want ErrInvalid", size, err)
		}
	}
}

// TestComplaintsAreFew: a full cache says so once a minute, however many chunks
// it passes on.
func TestComplaintsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := build(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		for range 1000 {
			c.unkept(errors.New("no room"))
		}
		<-time.After(logInterval)
		c.unkept(errors.New("no room"))
		if n := bytes.Count(log.Bytes(), []byte("cache is full")); n != 2 {
			t.Errorf("%d lines, want 2", n)
		}
	})
}
