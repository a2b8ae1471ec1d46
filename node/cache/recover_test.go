package cache

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

func diskSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// abandon ends a cache as kill -9 does: nothing is noted, the mapping stays.
func abandon(t testing.TB, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
}

// damages are what may befall the files of a cache between two starts; kept says
// whether the chunks are still there after it.
var damages = map[string]struct {
	crash bool // the cache was not closed before
	kept  bool
	do    func(t *testing.T, dir string)
}{
	"nothing, closed":   {false, true, func(*testing.T, string) {}},
	"nothing, killed":   {true, true, func(*testing.T, string) {}},
	"index bits":        {false, true, func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "index"), headerSize, 1) }},
	"index many bits":   {false, true, func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "index"), headerSize, 1000) }},
	"index any bits":    {false, false, func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "index"), 0, 1000) }},
	"index magic":       {false, true, func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, "index"), 0, "junk") }},
	"index gone":        {true, true, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "index")) }},
	"index empty":       {true, true, func(t *testing.T, dir string) { cut(t, filepath.Join(dir, "index"), 0) }},
	"index cut":         {true, true, func(t *testing.T, dir string) { cut(t, filepath.Join(dir, "index"), 9999) }},
	"index, power lost": {true, true, func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, "index"), 32, "another boot....") }},
	"index bits, killed": {true, false, func(t *testing.T, dir string) {
		flip(t, filepath.Join(dir, "index"), headerSize, 1000)
	}},
	"names gone": {false, true, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "names")) }},
	"names bits": {true, false, func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "names"), 0, 1000) }},
	"all but data": {true, false, func(t *testing.T, dir string) {
		remove(t, filepath.Join(dir, "index"))
		remove(t, filepath.Join(dir, "names"))
	}},
	"names and boot": {true, false, func(t *testing.T, dir string) {
		flip(t, filepath.Join(dir, "names"), 0, 100)
		overwrite(t, filepath.Join(dir, "index"), 32, "another boot....")
	}},
	"data bits": {false, false, func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "slabs-0000"), 0, 200) }},
	"data cut":  {false, false, func(t *testing.T, dir string) { cut(t, filepath.Join(dir, "slabs-0000"), 5<<20) }},
	"data gone": {true, false, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "slabs-0000")) }},
	"new index": {true, true, func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, "index.new"), 0, "half") }},
}

// TestDamage: whatever was damaged, a start succeeds, a read is right or absent,
// and the cache works on.
func TestDamage(t *testing.T) {
	for what, damage := range damages {
		t.Run(what, func(t *testing.T) {
			n := 1
			if strings.Contains(what, "bits") { // by chance
				n = soak.Rounds(20)
			}
			for range n {
				testDamage(t, damage.crash, damage.kept, damage.do)
			}
		})
	}
}

func testDamage(t *testing.T, crash, kept bool, do func(*testing.T, string)) {
	dir := t.TempDir()
	c := build(t, Config{Dir: dir})
	var all []content.Verified
	for n := range 100 {
		all = append(all, object(n, []int{100, 20 << 10, 64 << 10, 128 << 10}[n%4]))
		put(t, c, all[n])
	}
	if crash {
		abandon(t, c)
	} else if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	do(t, dir)
	c = build(t, Config{Dir: dir})
	check(t, c)
	for n, v := range all {
		if kept && !c.Has(v.CID()) {
			t.Fatalf("chunk %d is gone", n)
		}
		got, err := c.Get(v.CID(), nil)
		if err == nil && !bytes.Equal(got.Bytes(), v.Bytes()) {
			t.Fatal("wrong bytes")
		}
		if err != nil && !errors.Is(err, content.ErrNotFound) && !errors.Is(err, content.ErrCorrupt) {
			t.Fatal(err)
		}
		put(t, c, v)
		expect(t, c, v)
	}
	for n := range 100 {
		put(t, c, object(1000+n, 128<<10))
	}
	check(t, c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStaleIndex starts with the index of an hour ago, as a loss of power may
// leave it, and believes it: slots have been given to others since.
func TestStaleIndex(t *testing.T) {
	for seed := range uint64(soak.Rounds(20)) {
		dir := t.TempDir()
		c := build(t, Config{Dir: dir})
		rng := rand.New(rand.NewPCG(seed, 0))
		var all []content.Verified
		for n := range 4000 {
			all = append(all, object(n, []int{20 << 10, 128 << 10, 300 << 10}[rng.IntN(3)]))
			put(t, c, all[n])
			if n == 3500 {
				copyFile(t, filepath.Join(dir, "index"), filepath.Join(dir, "stale"))
			}
		}
		abandon(t, c)
		if err := os.Rename(filepath.Join(dir, "stale"), filepath.Join(dir, "index")); err != nil {
			t.Fatal(err)
		}
		c = build(t, Config{Dir: dir})
		check(t, c)
		p, here := make([]byte, 4096), 0
		for _, n := range rng.Perm(len(all)) {
			v := all[n]
			switch err := c.ReadAt(v.CID(), p, 8192); {
			case err == nil && !bytes.Equal(p, v.Bytes()[8192:][:4096]):
				t.Fatal("wrong bytes")
			case err == nil:
				here++
			case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt):
				put(t, c, v)
			default:
				t.Fatal(err)
			}
		}
		check(t, c)
		if here == 0 {
			t.Error("nothing was there")
		}
	}
}

// TestQuotaChanges: a cache that is opened with more or less makes its table
// anew, and gives back what is too much.
func TestQuotaChanges(t *testing.T) {
	dir := t.TempDir()
	c := build(t, Config{Dir: dir, Quota: 4 * quotaMin})
	var all []content.Verified
	for n := range 4000 {
		all = append(all, object(n, 128<<10))
		put(t, c, all[n])
	}
	for _, quota := range []int64{64 * quotaMin, quotaMin} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = build(t, Config{Dir: dir, Quota: quota})
		for _, v := range all {
			if !c.Has(v.CID()) {
				t.Fatal("a chunk is gone")
			}
		}
		check(t, c)
	}
	c.giveBack(t.Context())
	if st := c.Stats(); st.Disk > quotaMin || st.Chunks < quotaMin/(128<<10)/2 {
		t.Errorf("%+v", st)
	}
	check(t, c)
}

func flip(t *testing.T, path string, from, n int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		b[from+rand.IntN(len(b)-from)] ^= 1 << rand.IntN(8)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		_, err = f.WriteAt([]byte(text), off)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err == nil {
		_, err = io.Copy(out, in)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}
