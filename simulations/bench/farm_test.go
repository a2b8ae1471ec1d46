package bench

import (
	"fmt"
	"os/exec"
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
	// crowdRounds is how often each makes one, in turns.
	crowdRounds = 3

	// The bars: of what sending the image once takes, and ms of a guest's read.
	crowdMost, originMost    = 1.25, 1.02
	readP50Most, readP99Most = 1.2, 8.0
	readBesideP99Most        = 12.0
)

// BenchmarkCrowd times a cold farm whose nodes all want one image at once, in turns with
// BitTorrent: from a narrow store, which needs a while to send it once, and from a wide one.
func BenchmarkCrowd(b *testing.B) {
	disk := random(b, b.TempDir(), crowdSize)
	for _, rate := range []int{crowdMiB << 20, 0} {
		b.Run(fmt.Sprintf("store of %d bytes a second", rate), func(b *testing.B) {
			for b.Loop() {
				var took, cpu, origin, torrentTook, torrentCPU, torrentOrigin []float64
				for range crowdRounds {
					inLab(b, func(l *lab.Lab) {
						r := crowded(b, l, disk, rate)
						took, cpu, origin = append(took, r.seconds), append(cpu, r.cpu), append(origin, r.origin)
					})
					inLab(b, func(l *lab.Lab) {
						r := swarmed(b, l, disk, rate)
						torrentTook, torrentCPU, torrentOrigin = append(torrentTook, r.seconds), append(torrentCPU, r.cpu), append(torrentOrigin, r.origin)
					})
				}
				what := fmt.Sprintf("%d cold nodes, 256 MiB each", crowd)
				if rate > 0 {
					what += fmt.Sprintf(", store of %d MiB/s", crowdMiB)
					atMost(b, what, "s", median(took), crowdMost*float64(crowdSize)/float64(rate))
				}
				atMost(b, what+": beside BitTorrent", "s", median(took), median(torrentTook))
				atMost(b, what+": beside BitTorrent", "CPU-s", median(cpu), median(torrentCPU))
				atMost(b, what+": from the origin", "× the image", median(origin), originMost)
				atMost(b, what+": beside BitTorrent", "× the image", median(origin), median(torrentOrigin))
			}
		})
	}
}

// rush is what a crowd took: time until the last was done, CPU of all of them, and how many
// times the origin sent the image.
type rush struct{ seconds, cpu, origin float64 }

// crowded has nodes make one, from a store of some rate; 0 is without bound.
func crowded(b *testing.B, l *lab.Lab, disk string, rate int) (r rush) {
	b.Helper()
	store := startStore(b, l)
	importer := founder(b, l, store.URL)
	var nodes []*lab.Node
	for range crowd {
		nodes = append(nodes, another(b, l, "cold"))
	}
	run(b, importer, "image", "import", "disk", disk)
	if err := importer.Stop(); err != nil {
		b.Fatal(err)
	}
	if rate > 0 {
		if err := store.Narrow(b.Context(), rate); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range nodes {
		r.cpu -= cpuSeconds(b, n)
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
	r.seconds = time.Since(start).Seconds()
	for _, n := range nodes {
		bytes, err := n.Bytes(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		r.cpu += cpuSeconds(b, n)
		r.origin += float64(bytes.Origin) / crowdSize
	}
	return r
}

// BenchmarkFarmRead measures a guest's 4 KiB reads of a volume whose node has
// nothing, from a farm that has all: alone, and while the node fetches the whole
// image as well.
func BenchmarkFarmRead(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		l := newLab(b, dir)
		run(b, founder(b, l, ""), "image", "import", "disk", random(b, dir, pullSize))
		var p50s, p99s, besides []float64
		for range rounds {
			p50, p99 := coldRead(b, l, false)
			_, beside := coldRead(b, l, true)
			p50s, p99s, besides = append(p50s, p50), append(p99s, p99), append(besides, beside)
		}
		atMost(b, "4 KiB reads from a farm peer", "ms p50", median(p50s), readP50Most)
		atMost(b, "4 KiB reads from a farm peer", "ms p99", median(p99s), readP99Most)
		atMost(b, "4 KiB reads from a farm peer, beside a bulk fetch", "ms p99", median(besides), readBesideP99Most)
	}
}

// coldRead starts a node, reads as its guest, and stops it.
func coldRead(b *testing.B, l *lab.Lab, beside bool) (p50, p99 float64) {
	b.Helper()
	n := another(b, l, "a")
	uri := run(b, n, "volume", "create", n.Name, "--from", "image:disk")
	var bulk errgroup.Group
	if beside {
		bulk.Go(func() error {
			_, err := n.Run(b.Context(), "image", "warm", "disk")
			return err
		})
	}
	p50, p99 = latencies(b, uri)
	if err := bulk.Wait(); err != nil {
		b.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		b.Fatal(err)
	}
	return p50, p99
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
