package bench

import (
	"fmt"
	"io"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// slow is the line between two sites: 100 Mbit/s, 20 ms there and back.
func slow() netns.Line { return netns.Line{Rate: 100e6 / 8, Delay: 10 * time.Millisecond} }

// far is a node alone in its farm, behind a slow line, whose guest reads an image that
// is on the other side.
type far struct {
	tb   testing.TB
	near *lab.Node // who imported it
	node *lab.Node
	uri  string // of the guest's disk
}

// newFar makes one. The image comes from the member that imported it, or, once that is
// gone, from the store.
func newFar(tb testing.TB, size int, fromStore bool) *far {
	tb.Helper()
	dir := tb.TempDir()
	l := newLab(tb, dir)
	origin := ""
	if fromStore {
		origin = startStore(tb, l).URL
	}
	f := &far{tb: tb, near: founder(tb, l, origin)}
	run(tb, f.near, "image", "import", "disk", random(tb, dir, size))
	line := slow()
	l.Line = &line
	f.node = another(tb, l, "far")
	f.uri = run(tb, f.node, "volume", "create", "v", "--from", "image:disk")
	if fromStore {
		if err := f.near.Stop(); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

// measure returns how long something took, and what the line carried to the far node.
func (f *far) measure(do func()) (seconds float64, carried int64) {
	_, before := f.node.Host.Carried()
	start := time.Now()
	do()
	seconds = time.Since(start).Seconds()
	_, after := f.node.Host.Carried()
	return seconds, after - before
}

// read has the guest read with fio, one request after the other.
func (f *far) read(args ...string) (job fioJob) {
	f.tb.Helper()
	out, err := exec.Command("fio", append([]string{"--name=far", "--ioengine=nbd", "--uri=" + f.uri, "--iodepth=1", "--output-format=json"}, args...)...).Output()
	if err != nil {
		f.tb.Fatalf("fio: %v: %s", err, out)
	}
	return parseFio(f.tb, out)
}

// sequential reads the disk from there to its end, behind which nothing is read ahead.
func (f *far) sequential(from, size int) {
	f.tb.Helper()
	f.read("--rw=read", "--bs=128k", fmt.Sprintf("--offset=%d", from), fmt.Sprintf("--size=%d", size))
}

// scattered reads 4 KiB of so many chunks of the first part of the disk.
func (f *far) scattered(size, chunks int) (p50 float64) {
	f.tb.Helper()
	job := f.read("--rw=randread", "--bs=4k", fmt.Sprintf("--blockalign=%d", content.ChunkSizeDefault), fmt.Sprintf("--size=%d", size), fmt.Sprintf("--number_ios=%d", chunks))
	return job.Read.Latency.Percentile["50.000000"] / 1e6
}

// copyTCP sends bytes to the far node's host over one TCP connection.
func (f *far) copyTCP(size int) {
	f.tb.Helper()
	l, err := f.near.Host.Listen(f.tb.Context(), "tcp", f.near.Host.Addr().String()+":9100")
	if err != nil {
		f.tb.Fatal(err)
	}
	defer l.Close()
	var sending errgroup.Group
	sending.Go(func() error {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, size))
		return err
	})
	c, err := f.node.Host.Dial(f.tb.Context(), "tcp", l.Addr().String())
	if err != nil {
		f.tb.Fatal(err)
	}
	defer c.Close()
	if n, err := io.Copy(io.Discard, c); err != nil || int(n) != size {
		f.tb.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	if err := sending.Wait(); err != nil {
		f.tb.Fatal(err)
	}
}

// The bars: of what a plain TCP copy takes and carries, and of the chunks touched.
const (
	slowTimeMost, slowCarriedMost = 1.1, 1.05
	scatteredMost                 = 1.1
)

// TestSlowLineCarriesEachByteOnce counts what a guest's reads bring over a slow line,
// from a member and from the store.
func TestSlowLineCarriesEachByteOnce(t *testing.T) {
	const (
		size       = 128 << 20
		sequential = 16 << 20
		chunks     = 48
	)
	for _, fromStore := range []bool{false, true} {
		t.Run(fmt.Sprintf("from the store %t", fromStore), func(t *testing.T) {
			f := newFar(t, size, fromStore)
			_, plain := f.measure(func() { f.copyTCP(sequential) })
			if _, carried := f.measure(func() { f.sequential(size-sequential, sequential) }); float64(carried) > slowCarriedMost*float64(plain) {
				t.Errorf("reading %d bytes in order carried %d, a plain copy %d", sequential, carried, plain)
			}
			if _, carried := f.measure(func() { f.scattered(size-sequential, chunks) }); float64(carried) > scatteredMost*chunks*content.ChunkSizeDefault {
				t.Errorf("reading 4 KiB of %d chunks carried %d bytes, %.2f × the chunks", chunks, carried, float64(carried)/(chunks*content.ChunkSizeDefault))
			}
		})
	}
}

// BenchmarkSlowLine is the same at full size, and with the time it takes.
func BenchmarkSlowLine(b *testing.B) {
	for _, fromStore := range []bool{false, true} {
		from := map[bool]string{false: "from a member", true: "from the store"}[fromStore]
		b.Run(from, func(b *testing.B) {
			for b.Loop() {
				newFar(b, pullSize, fromStore).figures(b, from)
			}
		})
	}
}

func (f *far) figures(b *testing.B, from string) {
	b.Helper()
	const (
		sequential = 256 << 20
		chunks     = 400
		touched    = chunks * content.ChunkSizeDefault
	)
	plain, plainCarried := f.measure(func() { f.copyTCP(sequential) })
	took, carried := f.measure(func() { f.sequential(pullSize-sequential, sequential) })
	atMost(b, "slow line, 256 MiB in order "+from, "s", took, slowTimeMost*plain)
	atMost(b, "slow line, 256 MiB in order "+from, "MiB carried", float64(carried)/(1<<20), slowCarriedMost*float64(plainCarried)/(1<<20))
	var p50 float64
	_, carried = f.measure(func() { p50 = f.scattered(pullSize-sequential, chunks) })
	atMost(b, "slow line, 4 KiB of 400 chunks "+from, "MiB carried", float64(carried)/(1<<20), scatteredMost*touched/(1<<20))
	trip := 2*slow().Delay + content.ChunkSizeDefault*time.Second/time.Duration(slow().Rate)
	atMost(b, "slow line, 4 KiB of 400 chunks "+from, "ms p50", p50, float64(trip)/1e6)
}
