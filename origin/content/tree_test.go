package content

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content/golden"
)

func dirEntry(path string) TreeEntry {
	return TreeEntry{Path: []byte(path), Type: EntryDir, Mode: 0o755, Mtime: 1763676000123456789}
}

func fileEntry(path string, first uint64, lengths ...uint32) TreeEntry {
	e := TreeEntry{Path: []byte(path), Type: EntryFile, Mode: 0o644, Mtime: -1, UID: 1000, GID: 100, First: first, Lengths: lengths}
	e.Size = e.end()
	return e
}

func linkEntry(path, target string) TreeEntry {
	return TreeEntry{Path: []byte(path), Type: EntrySymlink, Mode: 0o777, Target: []byte(target)}
}

// goldenTree is a listing with each type of entry.
func goldenTree() []TreeEntry {
	long := fileEntry("etc/long", 2, 100, 200)
	long.Size = 1000
	more := TreeEntry{Path: []byte("etc/long"), Type: EntryMore, Size: 1000, Offset: 300, First: 4, Lengths: []uint32{700}}
	attrs := fileEntry("usr/bin/ping", 5, 9)
	attrs.Mode = 0o4755
	attrs.Xattrs = []Xattr{{Name: []byte("security.capability"), Value: []byte{1, 0, 0, 2}}, {Name: []byte("user.x")}}
	return []TreeEntry{
		dirEntry("etc"), fileEntry("etc/hosts", 0, 65536, 17), long, more,
		linkEntry("etc/mtab", "../proc/self/mounts"), fileEntry("etc-release", 0), dirEntry("usr"), dirEntry("usr/bin"), attrs, fileEntry("usr/\xff", 0),
	}
}

func TestGoldenTreePage(t *testing.T) {
	c := NewCodec()
	b := must(EncodeTreePage(c, goldenTree()))(t)
	golden.Check(t, "tree.page", b)
	got := must(DecodeTreePage(c, b))(t)
	if !reflect.DeepEqual(got, normal(goldenTree())) {
		t.Fatalf("%+v", got)
	}
	var check TreeChecker
	for _, e := range got {
		if err := check.Next(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := check.Finish(); err != nil {
		t.Fatal(err)
	}
}

func TestGoldenTree(t *testing.T) {
	c := NewCodec()
	tree := Tree{Entries: 10, Size: 70000, Chunks: 7, Listing: 1, Map: Sum([]byte("map"))}
	v := must(tree.Encode(c))(t)
	golden.Check(t, "tree", v.Bytes())
	if got := must(DecodeTree(c, v.Bytes()))(t); got != tree {
		t.Fatalf("%+v", got)
	}
	v = must(Tree{}.Encode(c))(t)
	golden.Check(t, "tree.empty", v.Bytes())
	if got := must(DecodeTree(c, v.Bytes()))(t); got != (Tree{}) {
		t.Fatalf("%+v", got)
	}
	for _, bad := range []Tree{
		{Entries: 1}, {Chunks: 1, Map: tree.Map}, {Entries: 1, Chunks: 1, Listing: 1}, {Entries: 1, Chunks: 1, Listing: 2, Map: tree.Map},
		{Entries: 1, Chunks: TreeChunksMax + 1, Listing: 1, Map: tree.Map}, {Entries: 1, Size: -1, Chunks: 1, Listing: 1, Map: tree.Map},
	} {
		_, err := bad.Encode(c)
		wantErr(t, err, ErrInvalid)
	}
}

func TestEntriesThatAreRefused(t *testing.T) {
	c := NewCodec()
	for name, e := range map[string]TreeEntry{
		"no path":               dirEntry(""),
		"an absolute path":      dirEntry("/etc"),
		"a slash at the end":    dirEntry("etc/"),
		"the directory itself":  dirEntry("."),
		"its parent":            dirEntry(".."),
		"a parent inside":       fileEntry("a/../b", 0),
		"two slashes":           dirEntry("a//b"),
		"a zero byte":           dirEntry("a\x00b"),
		"a long name":           dirEntry(strings.Repeat("x", 256)),
		"a long path":           dirEntry(strings.Repeat("x/", 2048) + "y"),
		"no type":               {Path: []byte("a")},
		"a device":              {Path: []byte("a"), Type: 5},
		"bits that are no mode": {Path: []byte("a"), Type: EntryDir, Mode: 0o100755},
		"a directory of bytes":  {Path: []byte("a"), Type: EntryDir, Size: 1, Lengths: []uint32{1}},
		"a link to nowhere":     linkEntry("a", ""),
		"a link with a zero":    linkEntry("a", "b\x00"),
		"a file that is a link": {Path: []byte("a"), Type: EntryFile, Target: []byte("b")},
		"a chunk of no bytes":   fileEntry("a", 0, 0),
		"a chunk too long":      fileEntry("a", 0, ChunkSizeMax+1),
		"more than its size":    {Path: []byte("a"), Type: EntryFile, Size: 1, Lengths: []uint32{2}},
		"less than nothing":     {Path: []byte("a"), Type: EntryFile, Size: -1},
		"bytes without chunks":  {Path: []byte("a"), Type: EntryFile, Size: 1},
		"more from the start":   {Path: []byte("a"), Type: EntryMore, Size: 1, Lengths: []uint32{1}},
		"more with a mode":      {Path: []byte("a"), Type: EntryMore, Mode: 1, Size: 2, Offset: 1, Lengths: []uint32{1}},
		"attributes unsorted":   {Path: []byte("a"), Type: EntryDir, Xattrs: []Xattr{{Name: []byte("b")}, {Name: []byte("a")}}},
		"an attribute unnamed":  {Path: []byte("a"), Type: EntryDir, Xattrs: []Xattr{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := EncodeTreePage(c, []TreeEntry{e})
			wantErr(t, err, ErrInvalid)
			b := must(c.Marshal(treePageWire{Magic: treePageMagic, Entries: normal([]TreeEntry{e})}))(t)
			_, err = DecodeTreePage(c, b)
			wantErr(t, err, ErrCorrupt)
			wantErr(t, new(TreeChecker).Next(e), ErrCorrupt)
		})
	}
}

func TestListingsThatAreRefused(t *testing.T) {
	long := fileEntry("a", 0, 10)
	long.Size = 30
	more := func(offset int64, first uint64, n uint32) TreeEntry {
		return TreeEntry{Path: []byte("a"), Type: EntryMore, Size: 30, Offset: offset, First: first, Lengths: []uint32{n}}
	}
	for name, list := range map[string][]TreeEntry{
		"out of order":             {dirEntry("b"), dirEntry("a")},
		"twice":                    {dirEntry("a"), dirEntry("a")},
		"below what is not listed": {fileEntry("a/b", 0)},
		"below a file":             {fileEntry("a", 0), fileEntry("a/b", 0)},
		"below a link":             {linkEntry("a", "/etc"), fileEntry("a/passwd", 0)},
		"below a left directory":   {dirEntry("a"), dirEntry("b"), fileEntry("a/b", 0)},
		"below a longer name":      {dirEntry("a"), fileEntry("ab/c", 0)},
		"cut short":                {long, dirEntry("b")},
		"cut at the end":           {long},
		"a gap":                    {long, more(11, 1, 19)},
		"chunks elsewhere":         {long, more(10, 2, 20)},
		"more of nothing":          {more(10, 1, 20)},
		"more of another":          {dirEntry("0"), more(10, 1, 20)},
	} {
		t.Run(name, func(t *testing.T) {
			var check TreeChecker
			var err error
			for _, e := range list {
				if err = check.Next(e); err != nil {
					break
				}
			}
			if err == nil {
				err = check.Finish()
			}
			wantErr(t, err, ErrCorrupt)
		})
	}
}

// pages cuts a listing.
func pages(t testing.TB, c *Codec, list []TreeEntry) [][]byte {
	t.Helper()
	var p TreePager
	var out [][]byte
	for _, e := range list {
		if b := must(p.Add(c, e))(t); b != nil {
			out = append(out, b)
		}
	}
	if b := must(p.Finish(c))(t); b != nil {
		out = append(out, b)
	}
	return out
}

func TestALongListingChangesWhereItChanged(t *testing.T) {
	c := NewCodec()
	var list []TreeEntry
	for d := range 20 {
		list = append(list, dirEntry(fmt.Sprintf("d%02d", d)))
		for f := range 500 {
			list = append(list, fileEntry(fmt.Sprintf("d%02d/file-%04d", d, f), 0, 4096))
		}
	}
	before := pages(t, c, list)
	if len(before) < 8 {
		t.Fatalf("only %d pages", len(before))
	}
	var back []TreeEntry
	known := make(map[CID]bool)
	for _, b := range before {
		known[Sum(b)] = true
		back = append(back, must(DecodeTreePage(c, b))(t)...)
	}
	if !reflect.DeepEqual(back, normal(list)) {
		t.Fatal("the listing came back otherwise")
	}
	changed := slices.Insert(slices.Clone(list), 2000, fileEntry(string(list[1999].Path)+"x", 0, 1))
	fresh := 0
	for _, b := range pages(t, c, changed) {
		if !known[Sum(b)] {
			fresh++
		}
	}
	if fresh > 2 {
		t.Fatalf("%d of %d pages changed for one file", fresh, len(before))
	}
}

func TestListingsComeBack(t *testing.T) {
	c := NewCodec()
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringMatching(`[a-c./ -]{1,3}`).Filter(func(s string) bool { return checkPath([]byte(s)) == nil })
		seen := make(map[string]TreeEntry)
		for _, p := range rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "parts"), "/")
		}), 0, 30).Draw(t, "paths") {
			for at := range p { // each directory above
				if p[at] == '/' {
					seen[p[:at]] = dirEntry(p[:at])
				}
			}
			if _, ok := seen[p]; !ok {
				seen[p] = fileEntry(p, 3, rapid.SliceOfN(rapid.Uint32Range(1, ChunkSizeMax), 1, 5).Draw(t, "lengths")...)
			}
		}
		var list []TreeEntry
		for _, e := range seen {
			list = append(list, e)
		}
		slices.SortFunc(list, TreeEntry.Compare)
		var pager TreePager
		var back []TreeEntry
		take := func(b []byte, err error) {
			if err != nil {
				t.Fatal(err)
			}
			if b != nil {
				entries, err := DecodeTreePage(c, b)
				if err != nil {
					t.Fatal(err)
				}
				back = append(back, entries...)
			}
		}
		for _, e := range list {
			take(pager.Add(c, e))
		}
		take(pager.Finish(c))
		if len(back) != len(list) {
			t.Fatalf("%d entries came back, want %d", len(back), len(list))
		}
		for i := range list {
			if !bytes.Equal(back[i].Path, list[i].Path) || back[i].Size != list[i].Size {
				t.Fatalf("entry %d: %+v, want %+v", i, back[i], list[i])
			}
		}
	})
}
