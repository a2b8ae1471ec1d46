package convert

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestBadTarsAreNoTrees: a tar file becomes a tree that can be written out, or an error that names what is bad.
func TestBadTarsAreNoTrees(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	link := func(name, to string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to} }
	symlink := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	deep, long := strings.Repeat("d/", 1000)+"file", strings.Repeat("n", 256)
	for name, x := range map[string]struct {
		in    []tar.Header
		names string // in the error; none is expected without
	}{
		"a name of nothing":         {[]tar.Header{link("a", "nothing")}, "a"},
		"a name of itself":          {[]tar.Header{link("a", "a")}, "a"},
		"names of each other":       {[]tar.Header{link("a", "b"), link("b", "a")}, "a"},
		"a name of a folder":        {[]tar.Header{{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, link("a", "d")}, "a"},
		"a name of the top":         {[]tar.Header{link("a", ".")}, "a"},
		"a name of what is outside": {[]tar.Header{link("a", "../../etc/passwd")}, "a"},
		"behind a link":             {[]tar.Header{symlink("a", "/tmp"), file("a/file")}, "a"},
		"a file and a folder":       {[]tar.Header{file("a"), file("a/b")}, "a"},
		"a folder and a file":       {[]tar.Header{file("a/b"), file("a")}, "a"},
		"outside":                   {[]tar.Header{file("../../x"), file("/etc/y"), file("a/../../z")}, ""},
		"links in a circle":         {[]tar.Header{symlink("a", "b"), symlink("b", "a"), symlink("c", ".")}, ""},
		"a link to nothing":         {[]tar.Header{symlink("a", "")}, "a"},
		"a long link":               {[]tar.Header{symlink("a", strings.Repeat("x", 4096))}, "a"},
		"a long name":               {[]tar.Header{file(long)}, "nnn"},
		"deep":                      {[]tar.Header{file(deep)}, ""},
		"not UTF-8":                 {[]tar.Header{file("not\xff"), symlink("l\xfe", "\xff")}, ""},
		"twice":                     {[]tar.Header{file("a"), file("./a"), file("/a")}, ""},
		"another kind":              {[]tar.Header{file("a"), symlink("a", "b")}, ""},
	} {
		path := filepath.Join(t.TempDir(), "it.tar")
		f, err := os.Create(path)
		must(t, err)
		w := tar.NewWriter(f)
		for _, h := range x.in {
			h.Format = tar.FormatGNU
			must(t, w.WriteHeader(&h))
		}
		must(t, w.Close(), f.Close())
		g, err := plantAt(t, Options{Path: path, Format: Tar})
		if (err != nil) != (x.names != "") || err != nil && (!errors.Is(err, content.ErrInvalid) || !strings.Contains(err.Error(), x.names)) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			harvested(t, g, t.TempDir())
		}
	}
}

// TestLargeThingsComeBack: a file of more than 4 GiB takes what is in it, and a folder of very many files comes back.
func TestLargeThingsComeBack(t *testing.T) {
	frugal(t)
	src := t.TempDir()
	sparse(t, filepath.Join(src, "large"), 5<<30+1, 0, 2<<30-files.Block, 4<<30, 5<<30-files.Block)
	began := time.Now()
	for i := range soak.Of(5_000, 100_000) {
		must(t, os.WriteFile(filepath.Join(src, "f"+strings.Repeat("\xff", i%3)+time.Duration(i).String()), []byte{byte(i) | 1}, 0o644))
	}
	made := time.Now()
	g := planting(t, Options{Path: src, Format: Dir})
	planted, out := time.Now(), t.TempDir()
	if n := len(bytes.Join(g, nil)); n > 64<<20 {
		t.Errorf("the tree has %d bytes", n)
	}
	is := harvested(t, g, out)
	t.Logf("made in %v, planted in %v, written and looked at in %v", made.Sub(began), planted.Sub(made), time.Since(planted))
	differ(t, "written out", is, described(t, src))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(out, "large"), &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("it takes %d bytes of the disk", st.Blocks*512)
	}
}
