package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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

const (
	// pullSize is of the file of random bytes.
	pullSize = 1 << 30

	// The bars: a pull beside the SDK's, the CPU seconds of both ends, and what desync
	// took of the SDK's time for the Debian image, where both were measured in turns.
	pullMost, pullCPUMost = 1.3, 2.7
	desyncPart            = 2.1 / 3.2
	importMost            = 3.0 // seconds
)

// debianDisk makes the Debian image, once on a machine, and returns its path.
func debianDisk(b *testing.B) string {
	b.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	image, err := debian.Build(b.Context(), filepath.Join(cache, "grange", "debian"), io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	return image.Disk
}

// BenchmarkImport times the import of a Debian disk to an S3 server that has nothing.
func BenchmarkImport(b *testing.B) {
	disk := debianDisk(b)
	for b.Loop() {
		var took []float64
		for range rounds {
			inLab(b, func(l *lab.Lab) {
				first := founder(b, l, startStore(b, l).URL)
				start := time.Now()
				run(b, first, "image", "import", "disk", disk)
				took = append(took, time.Since(start).Seconds())
			})
		}
		atMost(b, "import of Debian to an S3 server", "s", median(took), importMost)
	}
}

// BenchmarkPull times what it takes to have all of an image on another host: from a node
// of the farm, checked and kept; by one raw libp2p TLS stream, into nothing; from the S3
// server by the SDK, into a file. Each host is a network namespace.
func BenchmarkPull(b *testing.B) {
	s := newSite(b)
	disk := debianDisk(b)
	for name, path := range map[string]string{"random": random(b, s.dir, pullSize), "debian": disk} {
		run(b, s.first, "image", "import", name, path)
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		s.run(s.puller, s3Put, role{Store: s.store.URL, Key: "bench/" + name, File: path, Size: info.Size()})
	}
	info, err := os.Stat(disk)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f := s.compare("random", pullSize)
		atMost(b, "whole node, 1 GiB of random bytes, beside the SDK", "s", f.node, pullMost*f.sdk)
		atMost(b, "the same, beside one raw stream into nothing", "s", f.node, f.raw)
		atMost(b, "the same, both ends", "CPU-s", f.cpu, pullCPUMost)
		f = s.compare("debian", info.Size())
		atMost(b, "whole node, Debian, beside the SDK", "s", f.node, f.sdk)
		atMost(b, "the same, beside desync by the SDK's time", "s", f.node, desyncPart*f.sdk)
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
}

func newSite(b *testing.B) *site {
	s := &site{b: b, dir: b.TempDir()}
	s.lab = newLab(b, s.dir)
	s.store = startStore(b, s.lab)
	s.first = founder(b, s.lab, s.store.URL)
	var err error
	if s.puller, err = s.lab.Net.Host(b.Context(), "a"); err != nil {
		b.Fatal(err)
	}
	return s
}

// figures are medians, in seconds, and the CPU seconds of both nodes.
type figures struct{ raw, node, sdk, cpu float64 }

// compare lets each contender pull a file, in turns.
func (s *site) compare(name string, size int64) figures {
	s.b.Helper()
	addr := s.startRaw(size)
	var raw, node, sdk, cpu []float64
	for range rounds {
		raw = append(raw, s.seconds(rawPull, role{Address: addr, Size: size}))
		took, spent := s.warm(name)
		node, cpu = append(node, took), append(cpu, spent)
		sdk = append(sdk, s.seconds(s3Get, role{Store: s.store.URL, Key: "bench/" + name, File: filepath.Join(s.dir, "got"), Size: size}))
	}
	return figures{median(raw), median(node), median(sdk), median(cpu)}
}

// warm starts a node, has it fetch all of an image, and stops it.
func (s *site) warm(name string) (seconds, cpu float64) {
	s.b.Helper()
	n := another(s.b, s.lab, "a")
	start, before := time.Now(), cpuSeconds(s.b, n)+cpuSeconds(s.b, s.first)
	run(s.b, n, "image", "warm", name)
	seconds, cpu = time.Since(start).Seconds(), cpuSeconds(s.b, n)+cpuSeconds(s.b, s.first)-before
	if err := n.Stop(); err != nil {
		s.b.Fatal(err)
	}
	return seconds, cpu
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

// startRaw serves the raw stream until the end and returns its address.
func (s *site) startRaw(size int64) string {
	cmd := s.part(s.first.Host, rawServe, role{Address: fmt.Sprintf("/ip4/%s/tcp/0", s.first.Host.Addr()), Size: size})
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
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.b.Fatal(err)
	}
	return strings.TrimSpace(addr)
}
