package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const (
	// diskSize of the disk that is served.
	diskSize = 512 << 20
	// fioSeconds of one job in one round.
	fioSeconds = 2
)

// fioJobs are what guests do. Those of which something is promised have least: so many times
// what nbdkit does.
var fioJobs = []struct {
	name  string
	args  []string
	bulk  bool // counted in MiB/s, the others in operations
	least float64
}{
	{"4k random reads, depth 1", []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, false, 0},
	{"4k random reads, depth 32", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, false, 1.3},
	{"128k reads, depth 8", []string{"--rw=read", "--bs=128k", "--iodepth=8"}, true, 0},
	{"4k random writes, depth 1", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, false, 0.95},
	{"4k random writes, depth 32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, false, 1.3},
	{"128k writes, depth 8", []string{"--rw=write", "--bs=128k", "--iodepth=8"}, true, 1},
	{"4k random writes, each flushed", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, false, 0},
}

// BenchmarkReadersBesideWriters measures how long the slowest of a hundred reads of a
// volume takes while another client of it, and then one of another volume, writes and
// syncs without pause; nbdkit on raw files in turns.
func BenchmarkReadersBesideWriters(b *testing.B) {
	dir := b.TempDir()
	raw := random(b, dir, diskSize)
	n := founder(b, newLab(b, dir), "")
	run(b, n, "image", "import", "disk", raw)
	kit := func(socket, file string) string {
		return serve(b, dir, socket, "nbdkit", "-f", "-U", filepath.Join(dir, socket), "file", file)
	}
	other := filepath.Join(dir, "other.raw")
	if out, err := exec.Command("cp", raw, other).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	servers := [][2]string{ // the disk that is read, and another one
		{run(b, n, "volume", "create", "v", "--from", "image:disk", "--transport", "nbd"), run(b, n, "volume", "create", "w", "--from", "image:disk", "--transport", "nbd")},
		{kit("a.sock", raw), kit("b.sock", other)},
	}
	for _, s := range servers { // warm all caches
		for _, uri := range s {
			if out, err := exec.Command("nbdcopy", uri, "null:").CombinedOutput(); err != nil {
				b.Fatalf("%s: %v: %s", uri, err, out)
			}
		}
	}
	for b.Loop() {
		for which, beside := range []string{"a writer of the same volume", "a writer of another volume"} {
			var slowest [2][]float64
			for range rounds {
				for i, s := range servers {
					slowest[i] = append(slowest[i], readBeside(b, s[0], s[which]))
				}
			}
			atMost(b, "p99 of a 4 KiB read beside "+beside+", nbdkit's", "µs", median(slowest[0]), median(slowest[1]))
		}
	}
}

// readBeside returns the 99th percentile of the time of a read, in µs, while a client of
// written writes and syncs.
func readBeside(b *testing.B, read, written string) float64 {
	b.Helper()
	args := func(uri string, more ...string) []string {
		return append([]string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--size=" + fmt.Sprint(diskSize), "--bs=4k", "--time_based", "--output-format=json", "--randrepeat=0"}, more...)
	}
	writer := exec.Command("fio", args(written, "--rw=randwrite", "--iodepth=8", "--fsync=8", fmt.Sprintf("--runtime=%d", 2*fioSeconds))...)
	if err := writer.Start(); err != nil {
		b.Fatal(err)
	}
	out, err := exec.Command("fio", args(read, "--rw=randread", "--iodepth=1", fmt.Sprintf("--runtime=%d", fioSeconds))...).Output()
	if err := errors.Join(err, writer.Wait()); err != nil {
		b.Fatalf("fio: %v: %s", err, out)
	}
	return parseFio(b, out).Read.Latency.Percentile["99.000000"] / 1e3
}

// BenchmarkVolume compares a hot volume of a real node, whose writes go through
// the journal, with nbdkit and qemu-nbd on a raw file: all over unix sockets,
// page cache warm, in turns. The figures are operations a second, or MiB/s.
func BenchmarkVolume(b *testing.B) {
	dir := b.TempDir()
	raw := random(b, dir, diskSize)
	n := founder(b, newLab(b, dir), "")
	run(b, n, "image", "import", "disk", raw)
	device := run(b, n, "volume", "create", "v", "--from", "image:disk")
	servers := []struct{ name, uri string }{
		{"grange", device},
		{"nbdkit file", serve(b, dir, "nbdkit.sock", "nbdkit", "-f", "-U", filepath.Join(dir, "nbdkit.sock"), "file", raw)},
		{"qemu-nbd", serve(b, dir, "qemu.sock", "qemu-nbd", "-t", "-f", "raw", "-e", "8", "-k", filepath.Join(dir, "qemu.sock"), raw)},
	}
	for _, s := range servers { // warm all caches
		if out, err := exec.Command("nbdcopy", s.uri, "null:").CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", s.name, err, out)
		}
	}
	for b.Loop() {
		for _, job := range fioJobs {
			figures := make([][]float64, len(servers))
			for range rounds {
				for i, s := range servers {
					figures[i] = append(figures[i], fio(b, s.uri, job.args, job.bulk))
				}
			}
			line := fmt.Sprintf("%-32s", job.name)
			own := median(figures[0])
			for i, s := range servers {
				line += fmt.Sprintf("  %s %.0f", s.name, median(figures[i]))
				if i > 0 {
					line += fmt.Sprintf(" (%.2f)", own/median(figures[i]))
				}
			}
			b.Log(line)
			if job.least > 0 {
				atLeast(b, "NBD beside nbdkit file, "+job.name, map[bool]string{true: "MiB/s", false: "a second"}[job.bulk], own, job.least*median(figures[1]))
			}
		}
	}
}

// serve starts a peer and waits for its socket.
func serve(b *testing.B, dir, socket, name string, args ...string) string {
	b.Helper()
	path := filepath.Join(dir, socket)
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v; install %s", err, name)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return "nbd+unix:///?socket=" + path
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatalf("%s does not answer: %s", name, said.String())
		}
	}
}

// fio runs a job once and returns operations a second, or MiB/s of bulk.
func fio(b *testing.B, uri string, args []string, bulk bool) float64 {
	b.Helper()
	all := append([]string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--size=" + fmt.Sprint(diskSize), "--time_based", fmt.Sprintf("--runtime=%d", fioSeconds), "--output-format=json", "--randrepeat=0"}, args...)
	out, err := exec.Command("fio", all...).Output()
	if err != nil {
		b.Fatalf("fio: %v: %s", err, out)
	}
	job := parseFio(b, out)
	d := job.Read
	if d.IOPS == 0 {
		d = job.Write
	}
	if bulk {
		return d.BW / 1024
	}
	return d.IOPS
}

// fioJob is what fio reports of a job.
type fioJob struct {
	Read  fioDirection `json:"read"`
	Write fioDirection `json:"write"`
}

type fioDirection struct {
	IOPS    float64 `json:"iops"`
	BW      float64 `json:"bw"` // KiB a second
	Latency struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

func parseFio(b testing.TB, out []byte) fioJob {
	b.Helper()
	var result struct {
		Jobs []fioJob `json:"jobs"`
	}
	if err := json.Unmarshal(out[max(bytes.IndexByte(out, '{'), 0):], &result); err != nil || len(result.Jobs) == 0 {
		b.Fatalf("fio: %v: %s", err, out)
	}
	return result.Jobs[0]
}
