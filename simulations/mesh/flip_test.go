package mesh

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/lab"
)

// flip changes one byte in each stretch of a file, as a rotten disk does.
func flip(t *testing.T, path string, stretch int64) (flipped int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	for off := stretch / 2; off < info.Size(); off += stretch {
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		flipped++
	}
	return flipped
}

// flipCache flips a byte in every megabyte of what a node has cached.
func flipCache(t *testing.T, n *lab.Node) {
	t.Helper()
	slabs, err := filepath.Glob(filepath.Join(n.Data, "cache", "slabs-*"))
	if err != nil || len(slabs) == 0 {
		t.Fatalf("slabs of %s: %v, %v", n.Name, slabs, err)
	}
	for _, path := range slabs {
		t.Logf("%d bytes flipped in %s of %s", flip(t, path, 1<<20), filepath.Base(path), n.Name)
	}
}

// TestFlippedInACache: bytes flip in what a node has cached. It sends none of the
// bad chunks to others while it runs, and finds the rest when it starts again.
func TestFlippedInACache(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "a")
	rotten := nodes[1]
	path, sum := disk(t, l.Dir, imageSize())
	run(t, nodes[0], "image", "import", "disk", path)
	run(t, rotten, "image", "warm", "disk")
	flipCache(t, rotten)

	reader := start(t, l, store.URL, "a")[0]
	readAll(t, []*lab.Node{reader}, "v", "disk", sum)
	dropped := metric(t, rotten, "grange_cache_corrupt_chunks_total")
	t.Logf("%s has dropped %.0f chunks that it was asked for", rotten.Name, dropped)
	if dropped < 1 {
		t.Error("no bad chunk was found")
	}
	// What it has hashed since its start it may send unhashed: the reader finds that.
	t.Logf("%.0f bad chunks were sent", metric(t, reader, "grange_fetch_peer_lies_total"))

	if err := rotten.Kill(); err != nil {
		t.Fatal(err)
	}
	restart(t, rotten)
	readAll(t, []*lab.Node{rotten}, "w", "disk", sum)
	again := metric(t, rotten, "grange_cache_corrupt_chunks_total")
	t.Logf("after a restart it has dropped %.0f more", again)
	if again < 1 {
		t.Error("no bad chunk was found after the restart")
	}
	table(t, l)
}

// TestFlippedInAPack: bytes flip in the packs of the store. What a member holds is
// read from it; what nobody holds fails and says which pack is bad, and is read
// when the store is mended.
func TestFlippedInAPack(t *testing.T) {
	l := newLab(t)
	files, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "a", "b")
	path, sum := disk(t, l.Dir, imageSize())
	run(t, nodes[0], "image", "import", "disk", path)
	packs, err := files.Files("packs/")
	if err != nil {
		t.Fatal(err)
	}
	flip(t, packs[0], 4<<20)
	readAll(t, nodes[1:2], "held", "disk", sum)

	for _, n := range nodes[:2] {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	alone := nodes[2]
	pack := strings.TrimSuffix(filepath.Base(packs[0]), ".pack")
	for _, command := range []string{"verify", "warm"} {
		_, err := alone.Run(t.Context(), "image", command, "disk")
		t.Logf("%s: %v", command, err)
		if err == nil || !strings.Contains(err.Error(), "corrupt") || !strings.Contains(err.Error(), pack) {
			t.Errorf("image %s: %v; want an error that names pack %s", command, err, pack)
		}
	}
	if _, err := read(t.Context(), alone, "bad", "disk"); err == nil {
		t.Error("a disk with bad chunks was read whole")
	} else {
		t.Logf("read: %v", err)
	}
	bad := metric(t, alone, "grange_origin_corrupt_reads_total")
	t.Logf("%.0f reads of the store brought bad bytes", bad)
	if bad < 1 {
		t.Error("no metric shows the bad pack")
	}
	flip(t, packs[0], 4<<20)
	readAll(t, []*lab.Node{alone}, "mended", "disk", sum)
	table(t, l)
}

// TestFlippedInAJournal: a byte flips in the middle of what a guest has written.
// The node starts and serves its other volumes; of this one it says which range is
// bad, and takes no write.
func TestFlippedInAJournal(t *testing.T) {
	l := newLab(t)
	n := start(t, l, "", "a")[0]
	pattern := filepath.Join(l.Dir, "pattern")
	fill(t, pattern, 1)
	bad := run(t, n, "volume", "create", "bad", "--size", "64MiB")
	write(t, pattern, bad)
	for _, command := range []string{"write -P 7 32M 4k", "flush"} { // so the journal knows that the pattern was flushed
		if out, err := exec.Command("qemu-io", "-f", "raw", "-c", command, bad).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	segments, err := filepath.Glob(filepath.Join(n.Data, "volumes", "*", "*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments of the journal: %v, %v", segments, err)
	}
	good := run(t, n, "volume", "create", "good", "--size", "64MiB")
	write(t, pattern, good)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d byte flipped", flip(t, segments[0], patternSize))
	restart(t, n)
	back := filepath.Join(l.Dir, "back")
	if out, err := exec.Command("nbdcopy", good, back).CombinedOutput(); err != nil {
		t.Fatalf("read the other volume: %v: %s", err, out)
	}
	compareHead(t, pattern, back)
	v := volume(t, n, "bad")
	t.Logf("%s: %s", v.State, v.Detail)
	for _, word := range []string{filepath.Base(segments[0]), "bytes 3932160 to 4194304"} { // nbdcopy writes 256 KiB at a time
		if !strings.Contains(v.Detail, word) {
			t.Errorf("%q does not say %q", v.Detail, word)
		}
	}
	if v.State != "failed" {
		t.Errorf("the volume is %s, want failed", v.State)
	}
	if err := tryWrite(pattern, bad); err == nil {
		t.Error("the volume takes writes")
	}
	saved := run(t, n, "volume", "attach", "bad", "--readonly")
	for _, part := range []struct {
		what string
		read string
		fine bool
	}{{"before", "read 0 3840k", true}, {"bad", "read 3840k 256k", false}, {"behind", "read -P 7 32M 4k", true}} {
		out, err := exec.Command("qemu-io", "-r", "-f", "raw", "-c", part.read, saved).CombinedOutput()
		if (err == nil) != part.fine {
			t.Errorf("read of what is %s: %v: %s", part.what, err, out)
		}
	}
}
