package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// pullSize is of the file of random bytes.
const pullSize = 1 << 30

// firstPort is below the ports that peers listen on.
const firstPort = 9000

// BenchmarkPull times an import, and what it takes to have all of an image on
// another host: from a node of the farm, checked and kept; by one raw libp2p TLS
// stream, into nothing; from the S3 server by the SDK, into a file; by BitTorrent.
// Each host is a network namespace. Seconds, and the raw stream's seconds in parts
// of them.
func BenchmarkPull(b *testing.B) {
	cache, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	image, err := debian.Build(b.Context(), filepath.Join(cache, "grange", "debian"), io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	s := newSite(b)
	files := []struct{ name, path string }{{"random", random(b, s.dir, pullSize)}, {"debian", image.Disk}}
	for _, f := range files {
		start := time.Now()
		out, err := s.first.Run(b.Context(), "image", "import", f.name, f.path)
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("import of %s: %.2f s; %s", f.name, time.Since(start).Seconds(), strings.TrimSpace(out))
	}
	for b.Loop() {
		for _, f := range files {
			s.compare(f.name, f.path)
		}
	}
}

// site is a farm, an S3 server, and a host that pulls as the peers do.
type site struct {
	b      *testing.B
	dir    string
	lab    *lab.Lab
	store  *lab.Store
	first  *lab.Node
	puller *netns.Host
	ports  uint16 // taken so far
}

func newSite(b *testing.B) *site {
	s := &site{b: b, dir: b.TempDir()}
	s.lab = newLab(b, s.dir)
	var err error
	if s.store, err = s.lab.StartStore(b.Context()); err != nil {
		b.Fatal(err)
	}
	s.first = founder(b, s.lab, s.store.URL)
	if s.puller, err = s.lab.Net.Host(b.Context(), "a"); err != nil {
		b.Fatal(err)
	}
	return s
}

// compare lets each contender pull a file, in turns.
func (s *site) compare(name, path string) {
	info, err := os.Stat(path)
	if err != nil {
		s.b.Fatal(err)
	}
	size := info.Size()
	s.run(s.puller, s3Put, role{Store: s.store.URL, Key: "bench/" + name, File: path, Size: size})
	raw := s.startRaw(size)
	torrent := s.startTorrent(path)
	contenders := []struct {
		name string
		pull func() float64
	}{
		{"raw stream", func() float64 { return s.seconds(rawPull, role{Address: raw, Size: size}) }},
		{"grange", func() float64 { return s.warm(name) }},
		{"S3 SDK", func() float64 {
			return s.seconds(s3Get, role{Store: s.store.URL, Key: "bench/" + name, File: filepath.Join(s.dir, "got"), Size: size})
		}},
		{"aria2", func() float64 { return s.aria2(torrent) }},
	}
	figures := make([][]float64, len(contenders))
	for range rounds {
		for i, c := range contenders {
			figures[i] = append(figures[i], c.pull())
		}
	}
	line := fmt.Sprintf("pull of %s, %d MiB:", name, size>>20)
	for i, c := range contenders {
		line += fmt.Sprintf("  %s %.2f s (%.2f)", c.name, median(figures[i]), median(figures[0])/median(figures[i]))
	}
	s.b.Log(line)
}

// warm starts a node, has it fetch all of an image, and stops it.
func (s *site) warm(name string) float64 {
	n, err := s.lab.Start(s.b.Context(), "a", "")
	if err != nil {
		s.b.Fatal(err)
	}
	start := time.Now()
	if _, err := n.Run(s.b.Context(), "image", "warm", name); err != nil {
		s.b.Fatal(err)
	}
	took := time.Since(start).Seconds()
	if err := n.Stop(); err != nil {
		s.b.Fatal(err)
	}
	return took
}

// part is this binary in a role, on a host.
func (s *site) part(host *netns.Host, name string, r role) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		s.b.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		s.b.Fatal(err)
	}
	cmd := host.Command(s.b.Context(), self)
	cmd.Env = append(append(os.Environ(), s.lab.Env...), partEnv+"="+name, roleEnv+"="+string(text))
	return cmd
}

func (s *site) run(host *netns.Host, name string, r role) string {
	cmd := s.part(host, name, r)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		s.b.Fatalf("%s: %v: %s", name, err, said.String())
	}
	return string(out)
}

func (s *site) seconds(name string, r role) float64 {
	f, err := strconv.ParseFloat(strings.TrimSpace(s.run(s.puller, name, r)), 64)
	if err != nil {
		s.b.Fatal(err)
	}
	return f
}

// start starts a command that ends with the benchmark, and returns its output.
func (s *site) start(cmd *exec.Cmd) io.Reader {
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return out
}

// startRaw serves the raw stream and returns its address.
func (s *site) startRaw(size int64) string {
	out := s.start(s.part(s.first.Host, rawServe, role{Address: fmt.Sprintf("/ip4/%s/tcp/%d", s.first.Host.Addr(), s.address().Port()), Size: size}))
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.b.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// address is one of the first node's host that nothing listens on.
func (s *site) address() netip.AddrPort {
	s.ports++
	return netip.AddrPortFrom(s.first.Host.Addr(), firstPort+s.ports)
}

// ariaFlags have aria2 find its peers by the tracker alone.
var ariaFlags = []string{"--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--disable-ipv6=true", "--summary-interval=0",
	"--console-log-level=error", "--file-allocation=none", "--bt-tracker-interval=2", "--allow-overwrite=true"}

// startTorrent seeds a file and returns the torrent's path.
func (s *site) startTorrent(path string) string {
	announce, seeder := s.address(), s.address()
	torrent := filepath.Join(s.dir, filepath.Base(path)+".torrent")
	if out, err := exec.Command("mktorrent", "-l", "20", "-a", fmt.Sprintf("http://%s/announce", announce), "-o", torrent, path).CombinedOutput(); err != nil {
		s.b.Fatalf("mktorrent: %v: %s", err, out)
	}
	s.start(s.part(s.first.Host, tracker, role{Address: announce.String(), Seeder: seeder}))
	s.start(s.first.Host.Command(s.b.Context(), "aria2c", append(ariaFlags, "--bt-seed-unverified=true", "--seed-ratio=0.0",
		fmt.Sprintf("--listen-port=%d", seeder.Port()), "-d", filepath.Dir(path), torrent)...))
	for _, a := range []netip.AddrPort{announce, seeder} {
		s.run(s.first.Host, await, role{Address: a.String()})
	}
	return torrent
}

// aria2 downloads a torrent and returns the seconds, its start included.
func (s *site) aria2(torrent string) float64 {
	start := time.Now()
	cmd := s.puller.Command(s.b.Context(), "aria2c", append(ariaFlags, "--seed-time=0", "-d", filepath.Join(s.dir, "leech"), torrent)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.b.Fatalf("aria2: %v: %s", err, out)
	}
	took := time.Since(start).Seconds()
	if err := os.RemoveAll(filepath.Join(s.dir, "leech")); err != nil {
		s.b.Fatal(err)
	}
	return took
}
