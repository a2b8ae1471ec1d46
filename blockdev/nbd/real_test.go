//go:build linux || darwin

package nbd_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// realSize is the disk that real clients copy: long enough for many requests of
// each, with a tail that none of their block sizes divides.
const realSize = 64<<20 + 512

// sparse is a disk of some data between holes.
func sparse() *memory {
	disk, data := newMemory(realSize), newMemory(1<<20).fill().data
	for _, off := range []int64{0, 8 << 20, 9<<20 + 64<<10, 40 << 20} {
		disk.write(data, off)
	}
	disk.write(data[:512], realSize-512)
	return disk
}

func command(tb testing.TB, debian, name string, args ...string) []byte {
	tb.Helper()
	cmd := exec.Command(tool(tb, name, debian), args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = tb.TempDir(), &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out
}

func sum(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// allocated returns the bytes that a file occupies.
func allocated(tb testing.TB, path string) int64 {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// serveReal serves a sparse disk and an empty one of its size, over unix and
// TCP.
func serveReal(t *testing.T) (from, to *memory, uris []func(name string) string) {
	from, to = sparse(), newMemory(realSize)
	tcp, err := nbd.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := nbd.Config{Exports: newShelf(map[string]blockdev.Device{"from": from, "to": to})}
	cfg.Listeners = append(cfg.Listeners, tcp)
	unix := start(t, cfg, "")
	return from, to, []func(string) string{
		func(name string) string { return strings.Replace(unix, "nbd+unix:///", "nbd+unix:///"+name, 1) },
		func(name string) string { return nbd.URI(tcp.Addr(), name) },
	}
}

func TestNBDCopyKeepsBytesAndHoles(t *testing.T) {
	from, to, uris := serveReal(t)
	for _, uri := range uris {
		path := filepath.Join(t.TempDir(), "copy")
		command(t, "libnbd-bin", "nbdcopy", uri("from"), path)
		if got, want := sum(t, path), fmt.Sprintf("%x", sha256.Sum256(from.data)); got != want {
			t.Errorf("%s: the copy has other bytes", uri("from"))
		}
		if stored, want := allocated(t, path), int64(4<<20+64<<10); stored > want {
			t.Errorf("%s: the copy occupies %d bytes, want at most %d", uri("from"), stored, want)
		}
		command(t, "libnbd-bin", "nbdcopy", "--destination-is-zero", path, uri("to"))
		if !to.equal(from.data) {
			t.Errorf("%s: the copy back has other bytes", uri("to"))
		}
		to.Zero(t.Context(), 0, realSize, false, false)
		command(t, "libnbd-bin", "nbdcopy", uri("from"), uri("to"))
		if !to.equal(from.data) {
			t.Errorf("%s: the copy beside it has other bytes", uri("to"))
		}
		if got, want := data(to), data(from); got != want {
			t.Errorf("%s: %d pages hold data, want %d", uri("to"), got, want)
		}
	}
}

// data counts the pages that are no holes.
func data(m *memory) (n int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, hole := range m.hole {
		if !hole {
			n++
		}
	}
	return n
}

func TestNBDInfoSeesExportsAndHoles(t *testing.T) {
	_, _, uris := serveReal(t)
	for _, uri := range uris {
		var info struct {
			Exports []struct {
				Name      string `json:"export-name"`
				Size      int64  `json:"export-size"`
				MultiConn bool   `json:"can_multi_conn"`
				CanDF     bool   `json:"can_df"`
				CanTrim   bool   `json:"can_trim"`
				CanZero   bool   `json:"can_zero"`
				Min       int    `json:"block_size_minimum"`
				Max       int    `json:"block_size_maximum"`
				Contexts  []string
			}
			Structured bool
		}
		out := command(t, "libnbd-bin", "nbdinfo", "--list", "--json", uri(""))
		if err := json.Unmarshal(out, &info); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(info.Exports) != 2 || !info.Structured {
			t.Fatalf("exports: %s", out)
		}
		for i, name := range []string{"from", "to"} {
			e := info.Exports[i]
			if e.Name != name || e.Size != realSize || !e.MultiConn || !e.CanDF || !e.CanTrim || !e.CanZero || e.Min != 512 || e.Max != 32<<20 || len(e.Contexts) != 1 {
				t.Errorf("export %s: %s", name, out)
			}
		}
		var extents []struct {
			Offset, Length int64
			Type           int
		}
		out = command(t, "libnbd-bin", "nbdinfo", "--map", "--json", uri("from"))
		if err := json.Unmarshal(out, &extents); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(extents) != 9 || extents[0].Type != 0 || extents[0].Length != 1<<20 || extents[1].Type != 3 || extents[1].Length != 7<<20 {
			t.Errorf("map: %s", out)
		}
	}
}

func TestQEMUReadsWritesAndComparesDisks(t *testing.T) {
	from, to, uris := serveReal(t)
	for _, uri := range uris {
		dir := t.TempDir()
		raw, qcow := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
		command(t, "qemu-utils", "qemu-img", "convert", "-O", "raw", uri("from"), raw)
		if got, want := sum(t, raw), fmt.Sprintf("%x", sha256.Sum256(from.data)); got != want {
			t.Errorf("%s: convert made other bytes", uri("from"))
		}
		if stored := allocated(t, raw); stored > 5<<20 {
			t.Errorf("%s: the raw copy occupies %d bytes", uri("from"), stored)
		}
		command(t, "qemu-utils", "qemu-img", "convert", "-O", "qcow2", uri("from"), qcow)
		command(t, "qemu-utils", "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, uri("from"))
		command(t, "qemu-utils", "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow, uri("to"))
		if !to.equal(from.data) {
			t.Errorf("%s: convert wrote other bytes", uri("to"))
		}
		command(t, "qemu-utils", "qemu-img", "compare", uri("from"), uri("to"))
		var extents []struct {
			Start, Length int64
			Zero, Data    bool
		}
		out := command(t, "qemu-utils", "qemu-img", "map", "--output=json", uri("from"))
		if err := json.Unmarshal(out, &extents); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(extents) != 9 || extents[0].Zero || !extents[1].Zero || extents[1].Data || extents[1].Length != 7<<20 {
			t.Errorf("map: %s", out)
		}
		to.Zero(t.Context(), 0, realSize, false, false)
	}
}

func TestFioVerifiesWhatItWrote(t *testing.T) {
	to := newMemory(32 << 20)
	uri := serveDisk(t, to)
	for _, block := range []string{"512-64k", "4k-4k", "1m-1m"} {
		command(t, "fio", "fio", "--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange="+block, "--size=32m",
			"--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--fsync=64", "--randrepeat=0")
	}
}
