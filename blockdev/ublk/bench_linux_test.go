package ublk_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/pagecache"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
)

const (
	benchSize = 128 << 20
	// benchSeconds is how long fio drives each device in each turn.
	benchSeconds = 2
	// benchTurns: the guest's speed drifts, and each device gets its share of that.
	benchTurns = 5
)

// BenchmarkDoors compares ways to serve a raw file in memory to the kernel: ublk and
// our NBD through the kernel's client, the kernel's loop device, and nbdkit through
// the same client. In an emulated guest figures are counts of
// instructions, not of time: read the ratios alone.
func BenchmarkDoors(b *testing.B) {
	dir := b.TempDir()
	devices := benchDevices(b, dir)
	for _, load := range []struct{ name, rw, bs, depth string }{
		{"read-4k-1", "randread", "4k", "1"}, {"read-4k-32", "randread", "4k", "32"},
		{"write-4k-1", "randwrite", "4k", "1"}, {"write-4k-32", "randwrite", "4k", "32"},
		{"read-128k", "read", "128k", "4"}, {"write-128k", "write", "128k", "4"},
	} {
		b.Run(load.name, func(b *testing.B) {
			iops := inTurns(b, devices, load.rw, load.bs, load.depth, timed())
			b.ReportMetric(iops["ublk"]/iops["loop"], "of-loop")
			b.ReportMetric(iops["ublk"]/iops["nbd"], "of-nbd")
			b.ReportMetric(iops["ublk"]/iops["nbdkit"], "of-nbdkit")
		})
	}
}

// BenchmarkVolume compares a volume, whose image and journal are in memory, with the
// kernel's loop device on a raw file. The figures are to be read as those of
// BenchmarkDoors.
func BenchmarkVolume(b *testing.B) {
	dir := b.TempDir()
	devices := map[string]string{"loop": loopDevice(b, benchFile(b, dir, "loop"))}
	path := filepath.Join(dir, "volume")
	if err := volume.Create(path, [16]byte{1}); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(benchFile(b, dir, "image"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	v, err := volume.Open(volume.Config{Dir: path, ID: [16]byte{1}, Epoch: 1, Size: benchSize, Source: image{f}, SourceSize: benchSize, ChunkSize: imageChunk})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { v.Close() })
	devices["volume"] = newServed(b, v)
	writes := []string{"--io_size=64m"} // each makes the journal longer, which is in memory here
	for _, load := range []struct {
		name, rw, bs, depth string
		bounds              []string
	}{
		{"read-4k-1", "randread", "4k", "1", timed()}, {"read-4k-32", "randread", "4k", "32", timed()}, {"read-128k", "read", "128k", "4", timed()},
		{"write-4k-1", "randwrite", "4k", "1", writes}, {"write-4k-32", "randwrite", "4k", "32", writes}, {"write-128k", "write", "128k", "4", writes},
		{"reread-4k-32", "randread", "4k", "32", timed()}, {"reread-128k", "read", "128k", "4", timed()},
	} {
		b.Run(load.name, func(b *testing.B) {
			iops := inTurns(b, devices, load.rw, load.bs, load.depth, load.bounds)
			b.ReportMetric(iops["volume"]/iops["loop"], "of-loop")
		})
	}
}

// timed has fio drive a device for benchSeconds.
func timed() []string { return []string{"--time_based", fmt.Sprintf("--runtime=%d", benchSeconds)} }

// inTurns drives each device in each turn, and returns their requests a second.
func inTurns(b *testing.B, devices map[string]string, rw, bs, depth string, bounds []string) map[string]float64 {
	b.Helper()
	iops := make(map[string]float64)
	for b.Loop() {
		for range benchTurns {
			for name, path := range devices {
				iops[name] += fio(b, path, append(slices.Clone(bounds), "--rw="+rw, "--bs="+bs, "--iodepth="+depth)...) / benchTurns
			}
		}
	}
	for name, n := range iops {
		b.ReportMetric(n/float64(b.N), name+"-iops")
	}
	b.ReportMetric(0, "ns/op")
	return iops
}

// fio drives a device and returns its requests a second.
func fio(b *testing.B, path string, options ...string) float64 {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "fio", append(options, "--name=x", "--filename="+path,
		"--ioengine=io_uring", "--direct=1", "--thread", "--norandommap", "--output-format=json")...).Output()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	var report struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS
}

// benchDevices serves a file in four ways, each a copy of its own.
func benchDevices(b *testing.B, dir string) map[string]string {
	devices := map[string]string{
		"loop": loopDevice(b, benchFile(b, dir, "loop")),
		"ublk": newServed(b, openMapped(b, benchFile(b, dir, "ublk"))),
		"nbd":  "/dev/nbd0", "nbdkit": "/dev/nbd1",
	}
	l, err := nbd.Listen(b.Context(), "unix:"+filepath.Join(dir, "nbd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	door, err := nbd.New(nbd.Config{Exports: only{openMapped(b, benchFile(b, dir, "nbd"))}, Listeners: []net.Listener{l}})
	if err != nil {
		b.Fatal(err)
	}
	background(b, door.Run)
	nbdkit := exec.Command("nbdkit", "-f", "-U", filepath.Join(dir, "nbdkit.sock"), "file", benchFile(b, dir, "nbdkit"))
	if err := nbdkit.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nbdkit.Process.Kill(); nbdkit.Wait() })
	for i, socket := range []string{"nbd.sock", "nbdkit.sock"} {
		command(b, fmt.Sprintf("until nbd-client -unix %s -N '' /dev/nbd%d -b 512 2>&1; do sleep 0.1; done", filepath.Join(dir, socket), i))
		b.Cleanup(func() { command(b, fmt.Sprintf("nbd-client -d /dev/nbd%d", i)) })
	}
	return devices
}

// benchFile makes a file of random bytes.
func benchFile(b *testing.B, dir, name string) string {
	path := filepath.Join(dir, name)
	command(b, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=%d", path, benchSize>>20))
	return path
}

func command(b *testing.B, script string) {
	b.Helper()
	if out, err := exec.Command("bash", "-euc", script).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", script, err, out)
	}
}

func loopDevice(b *testing.B, path string) string {
	command(b, "losetup /dev/loop0 "+path)
	b.Cleanup(func() { command(b, "losetup -d /dev/loop0") })
	return "/dev/loop0"
}

// newServed serves a device as a disk until the end of the benchmark.
func newServed(b *testing.B, device blockdev.Device) string {
	s, err := ublk.New(ublk.Config{Owner: owner})
	if err != nil {
		b.Fatal(err)
	}
	background(b, s.Run)
	d, err := s.Add(b.Context(), -1, 0, device)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Stop(context.Background(), true); err != nil {
			b.Error(err)
		}
	})
	return d.Path()
}

// background runs until the end of the benchmark.
func background(b *testing.B, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}

// only exports one device under every name.
type only struct{ blockdev.Device }

func (o only) Lookup(context.Context, string) (blockdev.Device, func(), error) {
	return o.Device, func() {}, nil
}
func (o only) List(context.Context) ([]string, error) { return nil, nil }

const imageChunk = 128 << 10

// image is a file as the source of a volume, read as a cache reads it.
type image struct{ f *os.File }

func (i image) TryReadChunk(index uint64, off int, p []byte) bool {
	return pagecache.Read(i.f, p, int64(index)*imageChunk+int64(off))
}
func (i image) ReadChunk(_ context.Context, index uint64, off int, p []byte) error {
	_, err := i.f.ReadAt(p, int64(index)*imageChunk+int64(off))
	return err
}
func (i image) NextData(_ context.Context, index uint64) (start, end uint64, err error) {
	return index, benchSize / imageChunk, nil
}

// mapped is a file as a device whose bytes are where the door can copy them from and
// to, so that what is measured is the door.
type mapped []byte

func openMapped(b *testing.B, path string) mapped {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data, err := unix.Mmap(int(f.Fd()), 0, benchSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := unix.Munmap(data); err != nil {
			b.Error(err)
		}
	})
	return data
}

func (m mapped) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: benchSize, BlockSize: 512, PreferredSize: 256 << 10}
}
func (m mapped) TryReadAt(p []byte, off int64) bool { return move(p, m[off:]) }
func (m mapped) TryReadTo(w io.WriterAt, n int, off int64) bool {
	_, err := w.WriteAt(m[off:][:n], 0)
	return err == nil
}
func (m mapped) TryWriteFrom(r io.ReaderAt, n int, off int64) bool {
	_, err := r.ReadAt(m[off:][:n], 0)
	return err == nil
}
func (m mapped) ReadAt(_ context.Context, p []byte, off int64) error {
	m.TryReadAt(p, off)
	return nil
}
func (m mapped) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	move(m[off:][:len(p)], p)
	return nil
}

// move fills dst in pieces that the runtime copies by registers, as the kernel
// does. What is longer it copies by a string instruction, which a processor does
// as fast, but an emulator one step after the other.
func move(dst, src []byte) bool {
	const piece = 2 << 10
	for len(dst) > 0 {
		n := copy(dst[:min(piece, len(dst))], src)
		dst, src = dst[n:], src[n:]
	}
	return true
}

func (m mapped) Flush(context.Context) error { return nil }

func (m mapped) Zero(_ context.Context, off, n int64, _, _ bool) error {
	clear(m[off:][:n])
	return nil
}
func (m mapped) Extents(_ context.Context, dst []blockdev.Extent, _, n int64, _ int) ([]blockdev.Extent, error) {
	return append(dst, blockdev.Extent{Length: n}), nil
}
