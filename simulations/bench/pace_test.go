package bench

import (
	"context"
	"crypto/sha256"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// longSize is pulled over a line of longRate bytes a second, 60 ms there and back.
	longSize, longRate = 256 << 20, 32 << 20
	// thinRate is 25 Mbit/s.
	thinRate = 25e6 / 8
	// The bars: of what HTTPS makes of the long line, and of the bytes of desync.
	longLeast, thinMost = 0.8, 1.05
)

// pulled has a node behind a line fetch all of an image from the member that imported it.
func pulled(b *testing.B, line netns.Line, disk string) (f *far, seconds float64, carried int64) {
	b.Helper()
	l := newLab(b, b.TempDir())
	f = &far{tb: b, near: founder(b, l, "")}
	run(b, f.near, "image", "import", "disk", disk)
	l.Line = &line
	f.node = another(b, l, "far")
	seconds, carried = f.measure(func() { run(b, f.node, "image", "warm", "disk") })
	return f, seconds, carried
}

// download fetches as much over HTTPS as the far node did, and returns how long it took.
func (f *far) download(b *testing.B, size int64) (seconds float64) {
	b.Helper()
	l, err := f.near.Host.Listen(b.Context(), "tcp", f.near.Host.Addr().String()+":9443")
	if err != nil {
		b.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		block := make([]byte, 256<<10)
		for left := size; left > 0; left -= int64(len(block)) {
			if _, err := w.Write(block[:min(left, int64(len(block)))]); err != nil {
				return
			}
		}
	}))
	s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	defer s.Close()
	web := s.Client()
	way := web.Transport.(*http.Transport)
	way.TLSClientConfig.InsecureSkipVerify = true // it is for another address
	way.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return f.node.Host.Dial(ctx, network, address)
	}
	seconds, _ = f.measure(func() {
		r, err := web.Get(s.URL)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Body.Close()
		if n, err := io.Copy(io.Discard, r.Body); err != nil || n != size {
			b.Fatalf("%d of %d bytes: %v", n, size, err)
		}
	})
	return seconds
}

// BenchmarkLongLine pulls an image over 60 ms, in turns with HTTPS.
func BenchmarkLongLine(b *testing.B) {
	disk := random(b, b.TempDir(), longSize)
	line := netns.Line{Rate: longRate, Delay: 30 * time.Millisecond}
	for b.Loop() {
		var ours, plain []float64
		for range crowdRounds {
			f, seconds, _ := pulled(b, line, disk)
			ours, plain = append(ours, longSize/seconds), append(plain, longSize/f.download(b, longSize))
		}
		atLeast(b, "a pull over 60 ms, beside HTTPS", "MiB/s", median(ours)/(1<<20), longLeast*median(plain)/(1<<20))
	}
}

// BenchmarkThinLine pulls the Debian image over 25 Mbit/s, beside what the store of desync has of
// it, which is not to be had for a machine of ours: it is cut and compressed as desync does.
func BenchmarkThinLine(b *testing.B) {
	disk := debianDisk(b)
	bar := float64(desyncBytes(b, disk)) / (1 << 20)
	for b.Loop() {
		_, seconds, carried := pulled(b, netns.Line{Rate: thinRate, Delay: 10 * time.Millisecond}, disk)
		b.Logf("Debian over 25 Mbit/s: %.1f s", seconds)
		atMost(b, "Debian over 25 Mbit/s, beside desync", "MiB carried", float64(carried)/(1<<20), thinMost*bar)
	}
}

// desyncBytes is how many bytes desync's chunks of a file have, each once: cut by content,
// 16 to 256 KiB and 64 on average, and compressed one by one with zstd.
func desyncBytes(b *testing.B, path string) (total int) {
	b.Helper()
	const least, mean, most = 16 << 10, 64 << 10, 256 << 10
	content, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		b.Fatal(err)
	}
	var gear [256]uint64
	random := rand.New(rand.NewPCG(1, 1))
	for i := range gear {
		gear[i] = random.Uint64()
	}
	seen := map[[sha256.Size]byte]bool{}
	for len(content) > 0 {
		n, hash := min(len(content), least), uint64(0)
		for ; n < min(len(content), most); n++ {
			if hash = hash<<1 + gear[content[n]]; hash>>(64-bits.Len(mean-least-1)) == 0 {
				break
			}
		}
		if sum := sha256.Sum256(content[:n]); !seen[sum] {
			seen[sum] = true
			total += len(enc.EncodeAll(content[:n], nil))
		}
		content = content[n:]
	}
	return total
}
