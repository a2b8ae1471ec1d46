package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// recorded has the guest pause as it did where its processor was emulated, and quick as where it is not.
	recorded, quick = 1, 0.1

	blockedNearMost, blockedFarMost = 0.3, 1.0 // s
	fetchedMost                     = 1.6      // of what was read
	requestsMost                    = 1.0      // a MiB of the list
)

// subject is an image, what its guest reads, and how long that takes of the file.
type subject struct {
	name  string
	image debian.Image
	trace Trace
	raw   *os.File
	local map[float64]Replay
	list  *catalog.Boot // once it is published
}

// newSubject makes an image, and has it read from its file.
func newSubject(tb testing.TB, kind debian.Kind) *subject {
	tb.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatal(err)
	}
	folder := "debian"
	if kind != debian.Server {
		folder += "-" + string(kind)
	}
	s := &subject{name: string(kind), local: map[float64]Replay{}}
	if s.image, err = debian.BuildKind(tb.Context(), kind, filepath.Join(cache, "grange", folder), tb.Output()); err != nil {
		tb.Fatal(err)
	}
	if s.trace, err = Recorded(tb.Context(), s.image); err != nil {
		tb.Fatal(err)
	}
	if s.raw, err = os.Open(s.image.Disk); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.raw.Close() })
	return s
}

// locally reads the trace of the file itself, once for each speed.
func (s *subject) locally(tb testing.TB, speed float64) Replay {
	tb.Helper()
	if r, ok := s.local[speed]; ok {
		return r
	}
	uri, end, err := Serve(tb.Context(), tb.TempDir(), s.image.Disk)
	if err != nil {
		tb.Fatal(err)
	}
	r, err := s.trace.Replay(tb.Context(), uri, s.raw, speed)
	if err != nil {
		tb.Fatal(err)
	}
	if err := end(); err != nil {
		tb.Fatal(err)
	}
	s.local[speed] = r
	return r
}

// way is a line, by how it is called; there and back takes twice its delay.
type way struct {
	name string
	line netns.Line
}

func ways() []way {
	return []way{
		{"1 ms", netns.Line{Rate: 1e9 / 8, Delay: 500 * time.Microsecond}},
		{"60 ms", netns.Line{Rate: 1e9 / 8, Delay: 30 * time.Millisecond}},
		{"60 ms 100 Mbit", netns.Line{Rate: 100e6 / 8, Delay: 30 * time.Millisecond}},
	}
}

// mode is what a cold node has to go by.
type mode string

const (
	noList   mode = "plain"
	listOnly mode = "list"
	layout   mode = "layout"
	whole    mode = "whole" // of which all is fetched before
)

// BenchmarkColdBoot says how long a guest is blocked whose disk was never here, and what that brings in: by image, line,
// what the image has, and how much the guest pauses.
func BenchmarkColdBoot(b *testing.B) {
	for _, kind := range []debian.Kind{debian.Server, debian.Cloud, debian.Cluster} {
		b.Run(string(kind), func(b *testing.B) {
			s := newSubject(b, kind)
			b.Logf("%s: %d reads, %.1f MiB in blocks of their own, over %.1f s", kind, len(s.trace), mib(s.trace.Unique()), s.trace[len(s.trace)-1].Answered.Seconds())
			site := s.published(b)
			b.Run("really", func(b *testing.B) {
				for b.Loop() {
					s.really(b, site)
				}
			})
			for _, w := range ways() {
				for _, m := range []mode{noList, listOnly, layout, whole} {
					for _, speed := range []float64{recorded, quick} {
						if speed == recorded && m != layout && (m != noList || w.name != "60 ms") {
							continue // it takes minutes, and tells little more
						}
						b.Run(fmt.Sprintf("%s/%s/%g", w.name, m, speed), func(b *testing.B) {
							for b.Loop() {
								s.measure(b, site, w, m, speed)
							}
						})
					}
				}
			}
		})
	}
}

// really boots the image itself, from its file and from a cold node that is 60 ms away from all.
func (s *subject) really(b *testing.B, site *site) {
	b.Helper()
	boot := func(drive string, extra ...string) time.Duration {
		took, err := s.image.Boot(b.Context(), drive, io.Discard, extra...)
		if err != nil {
			b.Fatal(err)
		}
		return took
	}
	local := boot(s.image.Disk, "-snapshot")
	far := ways()[1]
	for _, m := range []mode{layout, noList} {
		c := site.cold(far.line)
		took := boot(run(b, c.Node, "volume", "create", c.Farm, "--from", "image:"+string(m), "--transport", "nbd"))
		c.end()
		line := fmt.Sprintf("%-7s %-17s %-6s really booted in %s, from its file in %s", s.name, far.name, m, seconds(took), seconds(local))
		b.Log(line)
		note(b, line)
	}
}

// published makes a site at whose store the image is, by a name for each mode.
func (s *subject) published(b *testing.B) *site {
	b.Helper()
	site := newSite(b)
	s.publish(b, site)
	return site
}

// publish has a site publish the image by its names.
func (s *subject) publish(b *testing.B, site *site) {
	b.Helper()
	began := time.Now()
	for _, m := range []mode{noList, layout} {
		run(b, site.publisher, "image", "import", string(m), s.image.Disk)
	}
	b.Logf("%s: published in %s", s.name, seconds(time.Since(began)))
	began = time.Now()
	args := []string{"image", "profile", string(layout), "--quiet", "90s"} // an emulated kernel takes long until it reads its disk
	if s.image.Kernel != "" {
		args = append(args, "--kernel", s.image.Kernel, "--initrd", s.image.Initrd, "--append", debian.KernelArguments)
	}
	run(b, site.publisher, args...)
	s.list = site.record(b, string(layout)).Boot
	site.publishAs(b, string(listOnly), site.record(b, string(noList)).Image, s.list)
	read, listed := s.trace.Chunks(content.ChunkSizeDefault), slices.Collect(s.list.All())
	var both int
	for _, chunk := range read {
		if slices.Contains(listed, chunk) {
			both++
		}
	}
	b.Logf("%s: profiled in %s; %d chunks are read, %d listed, of %.1f MiB stored, %d both", s.name, seconds(time.Since(began)), len(read), len(listed), mib(int64(s.list.Stored)), both)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// measure boots once.
func (s *subject) measure(b *testing.B, site *site, w way, m mode, speed float64) {
	b.Helper()
	local := s.locally(b, speed)
	c := site.cold(w.line)
	defer c.end()
	c.mark()
	name := string(m)
	var before time.Duration
	if m == whole {
		name = string(noList)
		began := time.Now()
		run(b, c.Node, "image", "warm", name)
		before = time.Since(began)
	}
	created, r, err := c.boots(b.Context(), c.Farm, name, s.trace, s.raw, speed)
	if err != nil {
		b.Fatal(err)
	}
	got := c.since()
	blocked := (before + r.Wall - local.Wall).Seconds()
	packs := c.asked.of("packs/")
	figures := fmt.Sprintf("%-7s %-17s %-6s × %-3g blocked %6.2f s (create %s, waits +%.2f s) raw %5.1f MiB = %.2f × read; stored %5.1f, line %5.1f MiB; requests %3d, %3d of packs = %.2f a MiB of the list",
		s.name, w.name, m, speed, blocked, seconds(created), (r.Waiting - local.Waiting).Seconds(),
		mib(got.raw), float64(got.raw)/float64(s.trace.Unique()), mib(got.sent), mib(got.wire), got.requests, packs, float64(packs)/mib(int64(s.list.Stored)))
	b.Log(figures)
	note(b, figures)
	if m == layout {
		bar(b, "blocked, s", blocked, map[string]float64{"1 ms": blockedNearMost, "60 ms": blockedFarMost}[w.name])
		bar(b, "bytes fetched, of those read", float64(got.raw)/float64(s.trace.Unique()), fetchedMost)
		bar(b, "requests, a MiB of the list", float64(packs)/mib(int64(s.list.Stored)), requestsMost)
	}
	s.tell(b, c, r)
}

// bar prints a figure beside the most that it may be, 0 for no bar, and the part of that it takes: over 1 misses the bar.
func bar(b *testing.B, what string, got, most float64) {
	b.Helper()
	if most > 0 {
		b.Logf("  %-30s %6.2f at most %5.2f (%.2f)", what, got, most, got/most)
	}
}

// note keeps figures where GRANGE_BOOT_FIGURES says, beside the benchmark's own output.
func note(b *testing.B, line string) {
	b.Helper()
	path := os.Getenv("GRANGE_BOOT_FIGURES")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, time.Now().Format(time.TimeOnly), line)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
}

// tell logs the reads that waited longest, and what the store was asked.
func (s *subject) tell(b *testing.B, c *cold, r Replay) {
	b.Helper()
	listed := map[uint64]bool{}
	for n := range s.list.All() {
		listed[n] = true
	}
	var in, out time.Duration
	var reads int
	for _, a := range r.Reads {
		if took := a.Answered - a.Sent; listed[uint64(a.Offset)/content.ChunkSizeDefault] {
			in += took
		} else {
			out, reads = out+took, reads+1
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "  reads of what is listed waited %s, the %d others %s", seconds(in), reads, seconds(out))
	for _, a := range r.Slowest(10) {
		fmt.Fprintf(&text, "\n  waited %4d ms at %6.3f s for %6d bytes at %d (chunk %d)", (a.Answered - a.Sent).Milliseconds(), a.Sent.Seconds(), a.Length, a.Offset, a.Offset>>17)
	}
	for line := range strings.Lines(c.Tail(logMax)) {
		if strings.Contains(line, "boot") {
			fmt.Fprintf(&text, "\n  %s", strings.TrimSpace(line))
		}
	}
	for _, q := range c.asked.requests[:min(len(c.asked.requests), 40)] {
		fmt.Fprintf(&text, "\n  %6.3f s %4d ms %s %s %s", q.at.Seconds(), q.took.Milliseconds(), q.method, q.key, strings.TrimPrefix(q.ranges, "bytes="))
	}
	b.Log(text.String())
	note(b, text.String())
}
