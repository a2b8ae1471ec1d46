package bench

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// treeReads of treeRead bytes are made of a mounted tree in one round, one after the other.
	treeReads, treeRead = 2000, 4096
	// treeRounds is how often; each is of a farm that has nothing of it yet.
	treeRounds = 3
)

// BenchmarkTreeReads measures a system that a cold farm mounts, by opening files anywhere in it and reading anywhere in them;
// again when the node has what was read; and of a local ext4 that has the same files, in turns. The kernel has nothing of either.
func BenchmarkTreeReads(b *testing.B) {
	cache, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	system, err := debian.Build(b.Context(), filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	l, places := newLab(b, dir), placesIn(b, system.Root)
	run(b, founder(b, l, startStore(b, l).URL), "tree", "import", "system", system.Root)
	for b.Loop() {
		var p50, p99 [3][]float64
		for round := range treeRounds {
			n := another(b, l, fmt.Sprint("cold", round))
			chosen := make([]place, treeReads)
			for i := range chosen {
				chosen[i] = places[rand.IntN(len(places))]
			}
			for i, read := range []func() []float64{
				func() []float64 { return treeReadsOf(b, n, chosen) }, func() []float64 { return treeReadsOf(b, n, chosen) }, func() []float64 { return ext4ReadsOf(b, system.Disk, chosen) },
			} {
				took := read()
				p50[i], p99[i] = append(p50[i], took[len(took)/2]), append(p99[i], took[len(took)*99/100])
			}
			if err := n.Stop(); err != nil {
				b.Fatal(err)
			}
		}
		for i, what := range []string{"of a mounted tree, cold farm", "the same once the node has it", "of a local ext4 on a loop device"} {
			b.Logf("a file opened and 4 KiB of it read, %-32s  p50 %8.3f ms  p99 %8.3f ms", what, median(p50[i]), median(p99[i]))
		}
	}
}

// place is a block of a file.
type place struct {
	file string
	off  int64
}

// placesIn are the blocks of all files in a folder.
func placesIn(b *testing.B, dir string) (out []place) {
	b.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, p)
		info, failed := d.Info()
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		for off := int64(0); off < info.Size(); off += treeRead {
			out = append(out, place{name, off})
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// treeReadsOf has a node mount the tree, and returns what reads of it took.
func treeReadsOf(b *testing.B, n *lab.Node, of []place) []float64 {
	b.Helper()
	at := b.TempDir()
	if _, err := n.Within(b.Context(), "tree", "mount", "system", at); err != nil {
		b.Fatal(err)
	}
	took := readsOf(b, filepath.Join("/proc", fmt.Sprint(n.PID()), "root", at), of) // nodes of a lab have mounts of their own
	run(b, n, "tree", "unmount", at)
	return took
}

// ext4ReadsOf mounts a disk that the kernel has nothing of.
func ext4ReadsOf(b *testing.B, disk string, of []place) []float64 {
	b.Helper()
	at := b.TempDir()
	f, err := os.Open(disk)
	if err == nil {
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "ro,loop", disk, at).CombinedOutput(); err != nil {
		b.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", at).Run()
	return readsOf(b, at, of)
}

// readsOf returns how long each took, in rising ms.
func readsOf(b *testing.B, dir string, of []place) (took []float64) {
	b.Helper()
	p := make([]byte, treeRead)
	for _, at := range of {
		began := time.Now()
		f, err := os.Open(filepath.Join(dir, at.file))
		if err == nil {
			_, err = f.ReadAt(p, at.off)
		}
		took = append(took, 1e3*time.Since(began).Seconds())
		if err != nil && !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		f.Close()
	}
	slices.Sort(took)
	return took
}

const (
	// The tree that is written out: half of it in small files, on average of smallSize, and half in large ones.
	exportSize, smallSize, largeSize = 1 << 30, 32 << 10, 64 << 20
)

// BenchmarkTreeExport measures how long a node takes that writes a tree of 1 GiB out: one that has nothing of it, another farm's,
// then the same one into another folder, from its cache; and cp, of the source on the same file system, in turns.
func BenchmarkTreeExport(b *testing.B) {
	dir := b.TempDir()
	l, src := newLab(b, dir), filepath.Join(dir, "src")
	manyFiles(b, src)
	run(b, founder(b, l, startStore(b, l).URL), "tree", "import", "many", src)
	for b.Loop() {
		var took [3][]float64
		for round := range treeRounds {
			n, out := another(b, l, fmt.Sprint("cold", round)), filepath.Join(dir, "out")
			for i, write := range []func(){
				func() { run(b, n, "tree", "export", "many", out) },
				func() { run(b, n, "tree", "export", "many", out) },
				func() {
					if said, err := exec.Command("cp", "-a", src, out).CombinedOutput(); err != nil {
						b.Fatalf("cp: %v: %s", err, said)
					}
				},
			} {
				began := time.Now()
				write()
				took[i] = append(took[i], time.Since(began).Seconds())
				if err := os.RemoveAll(out); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(n.Stop(), os.RemoveAll(n.Data)); err != nil {
				b.Fatal(err)
			}
		}
		for i, what := range []string{"cold farm", "the node has it", "cp -a of the source"} {
			b.Logf("1 GiB in %d files written out, %-20s %6.2f s", exportSize/2/smallSize+exportSize/2/largeSize, what, median(took[i]))
		}
	}
}

// manyFiles fills a folder with what does not compress.
func manyFiles(b *testing.B, dir string) {
	b.Helper()
	rng := rand.NewChaCha8([32]byte{})
	write := func(name string, size int) {
		path, p := filepath.Join(dir, name), make([]byte, size)
		rng.Read(p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, p, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	for i := range exportSize / 2 / smallSize {
		write(fmt.Sprintf("small/%03d/%d", i/100, i), smallSize/2+i*7919%smallSize)
	}
	for i := range exportSize / 2 / largeSize {
		write(fmt.Sprintf("large/%d", i), largeSize)
	}
}
