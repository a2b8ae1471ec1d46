package boots

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

func reopened(t *testing.T, dir string) *book {
	t.Helper()
	b, err := openBook(dir, content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rootOf(i int) content.CID { return content.Sum([]byte{byte(i), byte(i >> 8)}) }

// TestTheFirstBootStays: also over a start, and what came later is counted.
func TestTheFirstBootStays(t *testing.T) {
	dir := t.TempDir()
	root := rootOf(1)
	for i, x := range []boot{{at: 1, trace: []uint64{3, 1, 2}}, {at: 2, trace: []uint64{9}, made: 5, listed: 3, read: 2}, {at: 3, trace: []uint64{8}, made: 5, listed: 3, read: 1}} {
		if err := reopened(t, dir).note(root, x); err != nil {
			t.Fatal(i, err)
		}
	}
	p, ok := reopened(t, dir).of(root)
	if !ok || !slices.Equal(p.First, []uint64{3, 1, 2}) || p.Boots != 3 || p.Listed != 2 || p.Chunks != 6 || p.Read != 3 || p.At != 3 {
		t.Errorf("%+v", p)
	}
}

// TestABootOfNoDisk is one of its root, over a start too, and no use of a list.
func TestABootOfNoDisk(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Codec: content.NewCodec(), Now: func() time.Time { return time.Unix(7, 0) }, Log: slog.New(slog.DiscardHandler)}
	for n, trace := range [][]uint64{{3, 1, 2}, {9}} {
		New(cfg).Booted(rootOf(1), trace)
		b := New(cfg)
		want := Use{Boots: n + 1, Last: time.Unix(7, 0)}
		if got, kept := b.Use(rootOf(1), 0), b.Traces(rootOf(1)); got != want || len(kept) != 1 || !slices.Equal(kept[0], []uint64{3, 1, 2}) {
			t.Errorf("%+v of %d, want %+v", got, kept, want)
		}
	}
}

// TestAListThatIsWorthNothing is left out after some boots, until there is another.
func TestAListThatIsWorthNothing(t *testing.T) {
	b, root := reopened(t, t.TempDir()), rootOf(1)
	for i := range judgedAfter {
		if !b.worth(root, 7) {
			t.Fatalf("it is left out after %d boots", i)
		}
		if err := b.note(root, boot{made: 7, listed: 100, read: worthLeast - 1}); err != nil {
			t.Fatal(err)
		}
	}
	if b.worth(root, 7) {
		t.Error("boots read none of it, and it is brought in")
	}
	if !b.worth(root, 8) {
		t.Error("a new list is left out for what an older one was")
	}
	if err := b.note(root, boot{made: 8, listed: 100, read: 100}); err != nil || !b.worth(root, 8) {
		t.Errorf("%v", err)
	}
	if other := rootOf(2); !b.worth(other, 7) {
		t.Error("another root's list is left out")
	}
}

// TestBounds: the roots kept are bounded, those go of which no boot was for longest; files that are damaged, too large,
// or another's are passed over.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	b := reopened(t, dir)
	for i := range rootsMax + 3 {
		if err := b.note(rootOf(i), boot{at: int64(i), trace: []uint64{uint64(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"x.boots", rootOf(1).String() + pageEnd, "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), slices.Repeat([]byte("damaged"), 1+i*pageMax), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last, err := os.ReadFile(filepath.Join(dir, rootOf(rootsMax).String()+pageEnd))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, rootOf(2).String()+pageEnd), last, 0o600) // a copy under another name
	}
	if err != nil {
		t.Fatal(err)
	}
	again := reopened(t, dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) != rootsMax {
		t.Errorf("%d files are kept, %v", len(left), err)
	}
	if len(again.pages) != rootsMax {
		t.Errorf("%d roots are kept", len(again.pages))
	}
	for i := range rootsMax + 3 {
		if _, ok := again.of(rootOf(i)); ok != (i >= 3) {
			t.Errorf("root %d: %t", i, ok)
		}
	}
}

// TestWithoutAFolder: what can't be kept is a loss that nobody feels; a later start has it again.
func TestWithoutAFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "boots")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := New(Config{Dir: dir, Codec: content.NewCodec(), Log: slog.New(slog.DiscardHandler)})
	if err := b.book.note(rootOf(1), boot{at: 1, trace: []uint64{1}}); err == nil {
		t.Error("it is said to be kept in a file")
	}
	if u := b.Use(rootOf(1), 0); u.Boots != 0 || b.Traces(rootOf(1)) != nil {
		t.Errorf("%+v", u)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := reopened(t, dir).note(rootOf(1), boot{at: 1, trace: []uint64{1}}); err != nil {
		t.Error(err)
	}
}
