package nbd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// benchSize is the device of the benchmarks: larger than any processor's cache.
const benchSize = 1 << 30

// tool returns the path of a program, or fails with what brings it.
func tool(tb testing.TB, name, debian string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Fatalf("%s is missing: apt-get install %s", name, debian)
	}
	return path
}

// job is a load that fio makes.
type job struct {
	name   string
	mode   string // fio's rw
	block  string
	depth  int
	rounds int // of a second for each server; the median counts
}

// fio runs a job for the given seconds and returns operations a second.
func (j job) fio(tb testing.TB, uri string, seconds int) float64 {
	tb.Helper()
	cmd := exec.Command(tool(tb, "fio", "fio"), "--name=j", "--ioengine=nbd", "--uri="+uri, "--rw="+j.mode, "--bs="+j.block,
		fmt.Sprint("--iodepth=", j.depth), fmt.Sprint("--size=", benchSize), fmt.Sprint("--runtime=", seconds),
		"--time_based", "--norandommap", "--randrepeat=0", "--output-format=json")
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = tb.TempDir(), &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("fio: %v\n%s%s", err, out, stderr.Bytes())
	}
	var result struct {
		Jobs []struct {
			Read, Write struct {
				IOPS float64 `json:"iops"`
			}
		}
	}
	if err := json.Unmarshal(out[bytes.IndexByte(out, '{'):], &result); err != nil || len(result.Jobs) != 1 {
		tb.Fatalf("fio's result: %v\n%s", err, out)
	}
	if strings.Contains(j.mode, "write") {
		return result.Jobs[0].Write.IOPS
	}
	return result.Jobs[0].Read.IOPS
}

// nbdkit serves with a plugin until the test ends, and returns its URI.
func nbdkit(tb testing.TB, plugin ...string) string {
	tb.Helper()
	socket := filepath.Join(tb.TempDir(), "nbdkit.sock")
	cmd := exec.Command(tool(tb, "nbdkit", "nbdkit"), append([]string{"-f", "-U", socket}, plugin...)...)
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	uri := "nbd+unix:///?socket=" + socket
	waitFor(tb, uri)
	return uri
}

// BenchmarkBesideNBDKit measures this server on memory, nbdkit on memory and
// nbdkit on a cached file in turns, each filled with the same bytes, and reports
// the medians and what ours is to each of the others.
//
// fio spends six system calls on a read from any server that offers structured
// replies, four from one that does not: where it occupies a whole processor it
// measures itself, and the ratios of depth 32 are lower than the servers'.
func BenchmarkBesideNBDKit(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, benchSize), 0o600); err != nil {
		b.Fatal(err)
	}
	servers := []struct{ name, uri string }{
		{"ours", start(b, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": newMemory(benchSize).fill()})}, "disk")},
		{"memory", nbdkit(b, "memory", fmt.Sprint(benchSize))},
		{"file", nbdkit(b, "file", path)},
	}
	for _, s := range servers[1:] {
		if out, err := exec.Command(tool(b, "nbdcopy", "libnbd-bin"), servers[0].uri, s.uri).CombinedOutput(); err != nil {
			b.Fatalf("nbdcopy: %v\n%s", err, out)
		}
	}
	for _, j := range []job{
		{name: "read4k/depth32", mode: "randread", block: "4k", depth: 32, rounds: 5},
		{name: "read4k/depth1", mode: "randread", block: "4k", depth: 1, rounds: 7},
		{name: "write4k/depth32", mode: "randwrite", block: "4k", depth: 32, rounds: 5},
		{name: "write4k/depth1", mode: "randwrite", block: "4k", depth: 1, rounds: 7},
		{name: "read128k/depth8", mode: "read", block: "128k", depth: 8, rounds: 5},
		{name: "read128k/depth1", mode: "read", block: "128k", depth: 1, rounds: 5},
		{name: "write128k/depth8", mode: "write", block: "128k", depth: 8, rounds: 5},
	} {
		b.Run(j.name, func(b *testing.B) {
			for b.Loop() {
				figures := make([][]float64, len(servers))
				for range j.rounds {
					for i, s := range servers {
						figures[i] = append(figures[i], j.fio(b, s.uri, 1))
					}
				}
				ours := median(figures[0])
				b.ReportMetric(ours, "ops/s")
				for i, s := range servers[1:] {
					b.ReportMetric(ours/median(figures[i+1]), "x-"+s.name)
				}
			}
		})
	}
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
