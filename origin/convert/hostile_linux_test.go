package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
)

// sparseTar is a tar of one file of that many zeros, which takes 512 bytes there.
func sparseTar(t *testing.T, size uint64) string {
	t.Helper()
	h := make([]byte, 512)
	number := func(at int, n uint64) {
		h[at] = 0x80
		binary.BigEndian.PutUint64(h[at+4:], n)
	}
	copy(h, "large")
	copy(h[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	number(386, size) // a piece of nothing, at the end
	number(398, 0)
	number(483, size)
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	path := filepath.Join(t.TempDir(), "sparse.tar")
	if err := os.WriteFile(path, append(h, make([]byte, 1024)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestEndlessFilesOfATar: a header of 512 bytes does not keep an import at work for ever,
// nor one that was cancelled.
func TestEndlessFilesOfATar(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := Open(ctx, Options{Path: sparseTar(t, 1<<62), Temp: t.TempDir()})
	if !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a file of 4 EiB: %v, want ErrInvalid", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	src := files.Archive(sparseTar(t, 8<<40))
	if _, err := measure(ctx, src); !errors.Is(err, context.Canceled) {
		t.Errorf("a file of 8 TiB, cancelled: %v", err)
	}
}

// many is a tree of empty files.
type many int

func (m many) Each(_ context.Context, do func(*files.Entry) error) error {
	for i := range int(m) {
		if err := do(&files.Entry{Path: strconv.Itoa(i), Mode: unix.S_IFREG}); err != nil {
			return err
		}
	}
	return nil
}

// TestFilesWithoutEnd: what a tree holds, or a tar implies, is in this process's memory.
func TestFilesWithoutEnd(t *testing.T) {
	if _, err := measure(t.Context(), many(filesMax+1)); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("%d files: %v, want ErrInvalid", filesMax+1, err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	path := filepath.Join(t.TempDir(), "deep.tar")
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: strings.Repeat("a/", 100_000), Typeflag: tar.TypeDir, Mode: 0o755}), w.Close(), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Path: path, Temp: t.TempDir()}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a path of 200 kB: %v, want ErrInvalid", err)
	}
}

// TestTarsGiveNoCommands: what a tar names gives debugfs nothing to do, which reads and
// writes files of the host when it is told so.
func TestTarsGiveNoCommands(t *testing.T) {
	taken := filepath.Join(t.TempDir(), "taken")
	do := "dump <7> " + taken
	const line = 8191 // that debugfs reads; what follows is another one
	long := func(head string) string {
		return strings.Repeat("x", line-len(head)) + do + strings.Repeat(" ", line-len(do)) + "x"
	}
	for name, h := range map[string]tar.Header{
		"attribute":        {Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a\n" + do + "\n": "x"}},
		"bsdtar attribute": {Typeflag: tar.TypeReg, PAXRecords: map[string]string{"LIBARCHIVE.xattr.user.a%0A" + strings.ReplaceAll(do, "/", "%2F") + "%0A": "eA"}},
		"long attribute":   {Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr." + long("ea_set -f  <12> \""): "x"}},
		"link":             {Typeflag: tar.TypeSymlink, Linkname: "a\n" + do + "\n"},
		"long link":        {Typeflag: tar.TypeSymlink, Linkname: long(`symlink "long link" "`)},
		"long second name": {Typeflag: tar.TypeLink, Linkname: long(`ln "/`)},
	} {
		path := filepath.Join(t.TempDir(), "it.tar")
		f, err := os.Create(path)
		must(t, err)
		w := tar.NewWriter(f)
		h.Name, h.Mode, h.Format = name, 0o644, tar.FormatPAX
		must(t, w.WriteHeader(&h), w.Close(), f.Close())
		disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		must(t, err)
		o := Options{Path: path, Format: Tar, Temp: t.TempDir(), Note: func(string) {}, Warn: func(string) {}, Room: func(int64) error { return nil }}
		err = o.fill(t.Context(), disk, unix.EPERM)
		must(t, disk.Close())
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%.20s: %v, want ErrUnsupported or its loss", name, err)
		}
		if _, err := os.Stat(taken); err == nil {
			t.Errorf("%.20s: a file of the host is written", name)
			must(t, os.Remove(taken))
		}
	}
}

// TestLossesAreBounded: a tar in which each file loses something else says so in a few
// words.
func TestLossesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it.tar")
	f, err := os.Create(path)
	must(t, err)
	w := tar.NewWriter(f)
	for i := range 2 * kindsMax {
		name := fmt.Sprintf("SCHILY.xattr.none.%d%s", i, strings.Repeat("x", 100_000))
		must(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{name: "x"}}))
	}
	must(t, w.Close(), f.Close())
	for _, unable := range []error{nil, unix.EPERM} {
		said := 0
		disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		must(t, err)
		o := Options{Path: path, Format: Tar, Temp: t.TempDir(), Note: func(string) {}, Warn: func(text string) { said += len(text) }, Room: func(int64) error { return nil }}
		must(t, o.fill(t.Context(), disk, unable), disk.Close())
		if most := (kindsMax + 1) * (kindSize + 100); said == 0 || said > most {
			t.Errorf("unable to mount: %v; %d bytes of warnings, want %d at most", unable, said, most)
		}
	}
}
