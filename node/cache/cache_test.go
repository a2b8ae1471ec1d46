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
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// rounds is how often a long loop runs: few in CI, the full count in a soak.
func rounds(full int) int {
	if os.Getenv("GRANGE_SOAK") != "" {
		return full
	}
	return 5
}

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
	if err := c.Put(v); err != nil {
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
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("second Open: %v, want ErrConflict", err)
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
	for seed := range uint64(rounds(200)) {
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
		from := indexHeader
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
	if st.Disk > quotaMin || st.Evicted == 0 {
		t.Errorf("%d bytes on disk with a quota of %d, %d evicted", st.Disk, int64(quotaMin), st.Evicted)
	}
}

func TestScanDoesNotEvictWhatIsUsed(t *testing.T) {
	c := open(t, t.TempDir(), quotaMin)
	var hot []content.Verified
	for n := range 200 {
		hot = append(hot, object(n, 128<<10))
		put(t, c, hot[n])
	}
	p := make([]byte, 4096)
	for n := range 6000 { // three times the cache, read once
		put(t, c, object(1000+n, 128<<10))
		if err := c.ReadAt(hot[n%len(hot)].CID(), p, 0); err != nil && !errors.Is(err, content.ErrNotFound) {
			t.Fatal(err)
		}
	}
	left := 0
	for _, v := range hot {
		if c.Has(v.CID()) {
			left++
		}
	}
	if left < len(hot)*9/10 {
		t.Errorf("%d of %d used chunks survived a scan", left, len(hot))
	}
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
	if err := c.Pin("image", slices.Values(ids)); err != nil {
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

// TestFullDisk mounts a file system that is smaller than the quota: chunks are
// not kept, reads go on, and once there is room again they are.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount a small disk, as root: %v: %s", err, out)
	}
	defer exec.Command("umount", "--lazy", dir).Run() // the index is mapped until its table is collected
	c := open(t, filepath.Join(dir, "cache"), quotaMin)
	defer c.Close()
	filler := filepath.Join(dir, "filler")
	first := object(0, 128<<10)
	put(t, c, first)
	if err := os.WriteFile(filler, make([]byte, 56<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var full error
	for n := 1; n < 200 && full == nil; n++ {
		full = c.Put(object(n, 1<<20))
	}
	if !errors.Is(full, content.ErrNoSpace) || !c.Stats().Full {
		t.Fatalf("on a full disk: %v, %+v", full, c.Stats())
	}
	if c.Has(first.CID()) {
		expect(t, c, first)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	v := object(500, 128<<10)
	put(t, c, v)
	expect(t, c, v)
	if c.Stats().Full {
		t.Error("still full")
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
	for round := range rounds(20) {
		dir, quota, until := t.TempDir(), int64(64*slabSize), 500+100*round%3000
		if round%2 == 1 {
			dir, quota, until = small, quotaMin, 2500
		}
		said := kill(t, until, "GRANGE_CACHE_CHILD="+dir, fmt.Sprintf("GRANGE_CACHE_QUOTA=%d", quota), fmt.Sprintf("GRANGE_CACHE_ROUND=%d", round))
		start := time.Now()
		c := open(t, dir, quota)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("opening took %s", took)
		}
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

func BenchmarkReadAt4K(b *testing.B) {
	c := open(b, b.TempDir(), 0)
	var ids []content.CID
	for n := range 4096 {
		v := object(n, 128<<10)
		put(b, c, v)
		ids = append(ids, v.CID())
	}
	p := make([]byte, 4096)
	b.SetBytes(4096)
	n := 0
	for b.Loop() {
		if err := c.ReadAt(ids[n%len(ids)], p, 4096*(n%31)); err != nil {
			b.Fatal(err)
		}
		n++
	}
	st := c.Stats()
	b.ReportMetric(float64(st.IndexBytes)/(float64(st.Quota)/(1<<30)), "indexB/GiB")
}
