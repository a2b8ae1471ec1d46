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
	mode   string
	block  string
	depth  int
	reads  bool
	rounds int
	bar    float64 // the least ratio to nbdkit that we aim at
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

// nbdkit serves memory until the test ends, and returns its URI.
func nbdkit(tb testing.TB) string {
	tb.Helper()
	socket := filepath.Join(tb.TempDir(), "nbdkit.sock")
	cmd := exec.Command(tool(tb, "nbdkit", "nbdkit"), "-f", "-U", socket, "memory", fmt.Sprint(benchSize))
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

// BenchmarkBesideNBDKit measures both servers in turns, on memory filled with
// the same bytes, and reports the medians and their ratio.
func BenchmarkBesideNBDKit(b *testing.B) {
	uri := start(b, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": newMemory(benchSize).fill()})}, "disk")
	peer := nbdkit(b)
	if out, err := exec.Command(tool(b, "nbdcopy", "libnbd-bin"), uri, peer).CombinedOutput(); err != nil {
		b.Fatalf("nbdcopy: %v\n%s", err, out)
	}
	for _, j := range []job{
		{name: "read4k/depth32", mode: "randread", block: "4k", depth: 32, rounds: 3, bar: 1.3},
		{name: "read4k/depth1", mode: "randread", block: "4k", depth: 1, rounds: 7, bar: 0.95},
		{name: "write4k/depth32", mode: "randwrite", block: "4k", depth: 32, rounds: 3, bar: 1.3},
		{name: "write4k/depth1", mode: "randwrite", block: "4k", depth: 1, rounds: 7, bar: 0.95},
		{name: "read128k/depth8", mode: "read", block: "128k", depth: 8, rounds: 3, bar: 1},
		{name: "read128k/depth1", mode: "read", block: "128k", depth: 1, rounds: 3, bar: 1},
		{name: "write128k/depth8", mode: "write", block: "128k", depth: 8, rounds: 3, bar: 1},
	} {
		b.Run(j.name, func(b *testing.B) {
			for b.Loop() {
				var ours, theirs []float64
				for range j.rounds {
					ours = append(ours, j.fio(b, uri, 1))
					theirs = append(theirs, j.fio(b, peer, 1))
				}
				b.ReportMetric(median(ours), "ops/s")
				b.ReportMetric(median(theirs), "nbdkit-ops/s")
				b.ReportMetric(median(ours)/median(theirs), "ratio")
				b.ReportMetric(j.bar, "bar")
			}
		})
	}
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
