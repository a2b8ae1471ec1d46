package cache

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// object returns the n-th test object: its bytes follow from n.
func object(n, size int) content.Verified {
	b := make([]byte, size)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n))
	rand.NewChaCha8(seed).Read(b)
	return content.Seal(b)
}

func open(t testing.TB, dir string, quota int64) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, Quota: quota, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func put(t testing.TB, c *Cache, v content.Verified) {
	t.Helper()
	if err := c.Put(v, ReachMesh); err != nil {
		t.Fatal(err)
	}
}

// expect reads a chunk in both ways; it must be whole.
func expect(t *testing.T, c *Cache, v content.Verified) {
	t.Helper()
	p := make([]byte, min(4096, len(v.Bytes())))
	off := len(v.Bytes()) - len(p)
	if err := c.ReadAt(v.CID(), p, off); err != nil || !bytes.Equal(p, v.Bytes()[off:]) {
		t.Fatalf("ReadAt: %v, or other bytes", err)
	}
	got, err := c.Get(v.CID(), nil)
	if err != nil || !bytes.Equal(got.Bytes(), v.Bytes()) {
		t.Fatalf("Get: %v, or other bytes", err)
	}
}

func TestWhatIsPutIsThere(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	var all []content.Verified
	for n, size := range []int{1, 100, slotMin, slotMin + 1, 64 << 10, 128 << 10, 300 << 10, 1 << 20} {
		all = append(all, object(n, size))
		put(t, c, all[n])
		put(t, c, all[n]) // twice is once
	}
	for range 2 { // a restart between
		for _, v := range all {
			expect(t, c, v)
		}
		if st := c.Stats(); st.Chunks != int64(len(all)) {
			t.Fatalf("%d chunks, want %d", st.Chunks, len(all))
		}
		if err := c.ReadAt(content.Sum([]byte("absent")), make([]byte, 1), 0); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("absent: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = open(t, dir, 0)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, 0)
	_, err := Open(Config{Dir: dir})
	if !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second Open: %v, want ErrConflict that names the process", err)
	}
}

func TestBadBytesAreNeverReturned(t *testing.T) {
	dir := t.TempDir()
	v := object(1, 128<<10)
	c := open(t, dir, 0)
	put(t, c, v)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "slabs-0000"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{v.Bytes()[70000] ^ 1}, 70000); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, 0)
	if err := c.ReadAt(v.CID(), make([]byte, 16), 0); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("first touch of a rotten chunk: %v, want ErrCorrupt", err)
	}
	if c.Has(v.CID()) {
		t.Error("the rotten chunk is still there")
	}
	put(t, c, v)
	expect(t, c, v)
}

// TestDamagedIndex flips bits all over the index: what is read is right or
// absent, and the cache goes on.
func TestDamagedIndex(t *testing.T) {
	for seed := range uint64(soak.Rounds(200)) {
		dir := t.TempDir()
		c := open(t, dir, quotaMin)
		var all []content.Verified
		for n := range 200 {
			all = append(all, object(n, 20<<10+n))
			put(t, c, all[n])
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "index")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		from := headerSize
		if seed%5 == 4 {
			from = 0
		}
		for range 2000 {
			raw[from+rng.IntN(len(raw)-from)] ^= 1 << rng.IntN(8)
		}
		if seed%5 == 3 {
			raw = raw[:rng.IntN(len(raw))]
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		c = open(t, dir, quotaMin)
		for _, v := range all {
			if got, err := c.Get(v.CID(), nil); err == nil && !bytes.Equal(got.Bytes(), v.Bytes()) {
				t.Fatal("wrong bytes")
			}
			put(t, c, v)
			expect(t, c, v)
		}
		c.Close()
	}
}

// TestReadersAmongEvictions churns a small cache while readers check every byte.
func TestReadersAmongEvictions(t *testing.T) {
	c := open(t, t.TempDir(), quotaMin)
	const objects = 4000 // twice what fits
	sizes := []int{10 << 10, 128 << 10, 100 << 10, 256 << 10}
	all := make([]content.Verified, 64)
	for n := range all {
		all[n] = object(n, sizes[n%len(sizes)])
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for r := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			p := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := all[rng.IntN(len(all))]
				off := rng.IntN(len(v.Bytes()) - len(p))
				if err := c.ReadAt(v.CID(), p, off); err == nil && !bytes.Equal(p, v.Bytes()[off:off+len(p)]) {
					t.Error("wrong bytes")
					return
				} else if err != nil && !errors.Is(err, content.ErrNotFound) {
					t.Error(err)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for n := range objects {
		if n%3 == 0 {
			put(t, c, all[rng.IntN(len(all))])
		} else {
			put(t, c, object(1000+n, sizes[rng.IntN(len(sizes))]))
		}
	}
	close(stop)
	wg.Wait()
	st := c.Stats()
	if st.Disk > quotaMin || c.Evicted() == 0 {
		t.Errorf("%d bytes on disk with a quota of %d, %d evicted", st.Disk, int64(quotaMin), c.Evicted())
	}
}

// TestReaderNoticesReuse: who found an object before its slot was given to
// another, or to the same one again, knows it after the read.
func TestReaderNoticesReuse(t *testing.T) {
	c := build(t, Config{})
	v, w := object(1, 128<<10), object(2, 128<<10)
	put(t, c, v)
	before := slotOf(t, c, v.CID())
	for _, next := range []content.Verified{w, v} {
		for id := range map[content.CID]bool{v.CID(): true, w.CID(): true} {
			if s, ok := c.look(c.secret.key(id)); ok {
				c.drop(id, s, false)
			}
		}
		put(t, c, next)
		if after := slotOf(t, c, next.CID()); after.at != before.at {
			t.Fatal("the slot was not used again")
		}
		if c.still(before) {
			t.Error("a reader takes the slot's new bytes for those it looked for")
		}
	}
}

// TestOneSlotForTwo gives one slot to two objects in turn, while readers read
// both whole.
func TestOneSlotForTwo(t *testing.T) {
	c := build(t, Config{})
	pair := []content.Verified{object(1, 1<<20), object(2, 1<<20)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, v := range pair {
		wg.Go(func() {
			p := make([]byte, 1<<20)
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := c.ReadAt(v.CID(), p, 0)
				if err == nil && !bytes.Equal(p, v.Bytes()) || err != nil && !errors.Is(err, content.ErrNotFound) {
					t.Errorf("wrong bytes, or %v", err)
					return
				}
			}
		})
	}
	for n := range 400 * soak.Rounds(20) {
		v := pair[n%2]
		put(t, c, v)
		c.drop(v.CID(), slotOf(t, c, v.CID()), false)
	}
	close(stop)
	wg.Wait()
}

func TestPinsSurviveEvictionAndRestart(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, quotaMin)
	var ids []content.CID
	for n := range 300 {
		v := object(n, 128<<10)
		ids = append(ids, v.CID())
		if n%2 == 0 {
			put(t, c, v)
		}
	}
	if err := c.Pin("image", 0, slices.Values(ids)); err != nil {
		t.Fatal(err)
	}
	for n := range 300 { // the rest comes after the pin
		put(t, c, object(n, 128<<10))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, quotaMin)
	for n := range 3000 {
		put(t, c, object(1000+n, 128<<10))
	}
	for n, id := range ids {
		if !c.Has(id) {
			t.Fatalf("pinned chunk %d is gone", n)
		}
	}
	if err := c.Unpin("image"); err != nil {
		t.Fatal(err)
	}
	for n := range 9000 {
		put(t, c, object(10000+n, 128<<10))
	}
	left := 0
	for _, id := range ids {
		if c.Has(id) {
			left++
		}
	}
	if left > 100 {
		t.Errorf("%d of %d chunks are still there after they were unpinned", left, len(ids))
	}
}

func TestHitsAllocateNothing(t *testing.T) {
	c := open(t, t.TempDir(), 0)
	v := object(1, 128<<10)
	put(t, c, v)
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if err := c.ReadAt(v.CID(), p, 4096); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if !c.TryReadAt(v.CID(), p, 4096) {
			t.Fatal("what was just put is not in memory")
		}
	}); n != 0 || !bytes.Equal(p, v.Bytes()[4096:8192]) {
		t.Errorf("a prompt hit allocates %v times, or is wrong", n)
	}
	if c.TryReadAt(v.CID(), p, 128<<10-4095) || c.TryReadAt(v.CID(), p, -1) {
		t.Error("more than the chunk is read")
	}
	absent := content.Sum([]byte("absent"))
	if n := testing.AllocsPerRun(100, func() { c.ReadAt(absent, p, 0) }); n != 0 {
		t.Errorf("a miss allocates %v times", n)
	}
}

// TestKilledProcess kills a child that fills a cache, in odd rounds one so small
// that it evicts, and looks at what it left: all that it said it had, unless
// evicted, and nothing wrong.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv("GRANGE_CACHE_CHILD"); dir != "" {
		churn(t, dir)
		return
	}
	small := t.TempDir()
	for round := range soak.Rounds(20) {
		dir, quota, until := t.TempDir(), int64(64*slabSize), 500+100*round%3000
		if round%2 == 1 {
			dir, quota, until = small, quotaMin, 2500
		}
		said := kill(t, until, "GRANGE_CACHE_CHILD="+dir, fmt.Sprintf("GRANGE_CACHE_QUOTA=%d", quota), fmt.Sprintf("GRANGE_CACHE_ROUND=%d", round))
		start := time.Now()
		c := open(t, dir, quota)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("opening took %s", took)
		}
		check(t, c)
		here := 0
		for n := range said + 1 {
			v := object(round*100000+n, 128<<10)
			if got, err := c.Get(v.CID(), nil); err == nil && bytes.Equal(got.Bytes(), v.Bytes()) {
				here++
			} else if err == nil {
				t.Fatal("wrong bytes")
			}
		}
		if want := said + 1; round%2 == 0 && here < want {
			t.Errorf("round %d: %d chunks are there, want %d", round, here, want)
		}
		if round%2 == 1 && here < 100 {
			t.Errorf("round %d: %d chunks of %d are there", round, here, said)
		}
		c.Close()
	}
}

// kill runs this test in a child until it has put that many, and ends it.
func kill(t *testing.T, until int, env ...string) (said int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); said < until && lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "put %d", &said); err != nil {
			t.Fatal(lines.Text())
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	return said
}

func churn(t *testing.T, dir string) {
	round, err := strconv.Atoi(os.Getenv("GRANGE_CACHE_ROUND"))
	if err != nil {
		t.Fatal(err)
	}
	quota, err := strconv.ParseInt(os.Getenv("GRANGE_CACHE_QUOTA"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, dir, quota)
	for n := 0; ; n++ {
		put(t, c, object(round*100000+n, 128<<10))
		fmt.Printf("put %d\n", n)
	}
}

// TestReadForHashesOnceADay: what goes to peers is hashed at its first touch after a
// start, and a day later again; it goes no farther than it may.
func TestReadForHashesOnceADay(t *testing.T) {
	now := time.Unix(1e9, 0)
	cfg := Config{Dir: t.TempDir(), ScrubRate: -1, Now: func() time.Time { return now }}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	read := func(v content.Verified) ([]byte, error) { return c.ReadFor(v.CID(), ReachMesh, nil) }
	fresh, started, old := object(1, 128<<10), object(2, 128<<10), object(3, 100)
	for _, v := range []content.Verified{fresh, started, old} {
		put(t, c, v)
		if b, err := read(v); err != nil || !bytes.Equal(b, v.Bytes()) {
			t.Fatalf("ReadFor: %v, or other bytes", err)
		}
	}
	if _, err := c.ReadFor(fresh.CID(), ReachPublic, nil); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("farther than it goes: %v", err)
	}
	rot(t, c, fresh.CID(), 5)
	if b, err := read(fresh); err != nil || bytes.Equal(b, fresh.Bytes()) {
		t.Errorf("it was hashed again, though that was done today: %v", err)
	}
	rot(t, c, old.CID(), 5)
	now = now.Add(recheckAfter)
	c.tick()
	if _, err := read(old); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("rotten for a day: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rot(t, c, started.CID(), 5)
	if _, err := read(started); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("rotten at a start: %v", err)
	}
}
