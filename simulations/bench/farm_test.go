package bench

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// crowd is how many cold nodes want one image at once, of crowdSize, from a
	// store that sends crowdMiB a second.
	crowd     = 8
	crowdSize = 256 << 20
	crowdMiB  = 50
)

// BenchmarkCrowd times a cold farm whose nodes all want one image at once, while
// the store is a narrow one: what the store needs to send it once is the least
// that it can take.
func BenchmarkCrowd(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		l := newLab(b, dir)
		store, err := l.StartStore(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		importer := founder(b, l, store.URL)
		var nodes []*lab.Node
		for range crowd {
			n, err := l.Start(b.Context(), "cold", "")
			if err != nil {
				b.Fatal(err)
			}
			nodes = append(nodes, n)
		}
		if _, err := importer.Run(b.Context(), "image", "import", "disk", random(b, dir, crowdSize)); err != nil {
			b.Fatal(err)
		}
		if err := importer.Stop(); err != nil {
			b.Fatal(err)
		}
		if err := store.Narrow(b.Context(), crowdMiB<<20); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		var all errgroup.Group
		for _, n := range nodes {
			all.Go(func() error {
				_, err := n.Run(b.Context(), "image", "warm", "disk")
				return err
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
		took, least := time.Since(start).Seconds(), float64(crowdSize)/(crowdMiB<<20)
		b.Logf("%d cold nodes, %d MiB each, store of %d MiB/s: %.2f s, %.2f × what sending it once takes", crowd, crowdSize>>20, crowdMiB, took, took/least)
	}
}

// BenchmarkFarmRead measures a guest's 4 KiB reads of a volume whose node has
// nothing, from a farm that has all: alone, then while the node fetches the whole
// image as well.
func BenchmarkFarmRead(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		l := newLab(b, dir)
		first := founder(b, l, "")
		if _, err := first.Run(b.Context(), "image", "import", "disk", random(b, dir, pullSize)); err != nil {
			b.Fatal(err)
		}
		for _, beside := range []bool{false, true} {
			n, err := l.Start(b.Context(), "a", "")
			if err != nil {
				b.Fatal(err)
			}
			uri, err := n.Run(b.Context(), "volume", "create", n.Name, "--from", "image:disk")
			if err != nil {
				b.Fatal(err)
			}
			var bulk errgroup.Group
			if beside {
				bulk.Go(func() error {
					_, err := n.Run(b.Context(), "image", "warm", "disk")
					return err
				})
			}
			p50, p99 := latencies(b, strings.TrimSpace(uri))
			if err := bulk.Wait(); err != nil {
				b.Fatal(err)
			}
			b.Logf("4 KiB reads from a farm peer, beside a bulk fetch %t: p50 %.2f ms, p99 %.2f ms", beside, p50, p99)
			if err := n.Stop(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// coldReads are few enough that nearly each finds a chunk that nobody has read.
const coldReads = 400

// latencies returns the median and the 99th percentile of random reads, in ms.
func latencies(b *testing.B, uri string) (p50, p99 float64) {
	b.Helper()
	out, err := exec.Command("fio", "--name=cold", "--ioengine=nbd", "--uri="+uri, fmt.Sprintf("--size=%d", pullSize), "--rw=randread", "--bs=4k", "--iodepth=1",
		fmt.Sprintf("--number_ios=%d", coldReads), "--randrepeat=0", "--output-format=json").Output()
	if err != nil {
		b.Fatalf("fio: %v: %s", err, out)
	}
	r := parseFio(b, out).Read.Latency.Percentile
	return r["50.000000"] / 1e6, r["99.000000"] / 1e6
}
