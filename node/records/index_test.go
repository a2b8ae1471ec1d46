package records

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

func open(t fataler, path string) (*index, []string) {
	t.Helper()
	var seen []string
	x, _, err := openIndex(path, content.NewCodec(), func(p piece) { seen = append(seen, p.ID) })
	if err != nil {
		t.Fatal(err)
	}
	return x, seen
}

func named(id, body string, links ...string) piece {
	p := piece{ID: id, Links: [][]byte{}, Maps: []content.CID{}, Body: []byte(body)}
	for _, l := range links {
		p.Links = append(p.Links, []byte(l))
	}
	return p
}

// TestIndexIsAMap: whatever is put, forgotten, written anew and opened again, the index
// has the last of each name, in order, and each link finds who has it.
func TestIndexIsAMap(t *testing.T) {
	dir, rounds := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		rounds++
		path := filepath.Join(dir, fmt.Sprint(rounds))
		x, _ := open(t, path)
		type value struct{ body, link string }
		want := map[string]value{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				id, v := fmt.Sprintf("image/%d", rapid.IntRange(0, 20).Draw(t, "id")), value{rapid.StringN(0, 9, -1).Draw(t, "body"), rapid.SampledFrom([]string{"\x01a", "\x02b"}).Draw(t, "link")}
				if err := x.put(named(id, v.body, v.link)); err != nil {
					t.Fatal(err)
				}
				if want[id] = v; v.body == "" {
					delete(want, id)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := x.close(); err != nil {
					t.Fatal(err)
				}
				x, _ = open(t, path)
			},
			"rewrite": func(t *rapid.T) {
				if err := x.rewrite(); err != nil {
					t.Fatal(err)
				}
				if fi, err := os.Stat(path); err != nil || fi.Size() != x.live+int64(len(indexMagic)) || fi.Size() != x.end {
					t.Fatalf("%d live bytes of %d, %v", x.live, fi.Size(), err)
				}
			},
			"": func(t *rapid.T) {
				var ids []string
				links := map[string][]string{}
				for id, v := range want {
					ids = append(ids, id)
					links[v.link] = append(links[v.link], id)
					if b, err := x.get(id); err != nil || string(b) != v.body {
						t.Fatalf("%s: %q, %v, want %q", id, b, err, v.body)
					}
				}
				slices.Sort(ids)
				if got := x.names("", 99); !slices.Equal(got, ids) {
					t.Fatalf("%q, want %q", got, ids)
				}
				for _, link := range []string{"\x01a", "\x02b"} {
					slices.Sort(links[link])
					if got := x.linked(link, 99); !slices.Equal(got, links[link]) {
						t.Fatalf("behind %q: %q, want %q", link, got, links[link])
					}
				}
			},
		})
		x.close()
	})
}

// TestATornIndexIsNotBelieved: whatever a crash has left of the file, and whatever bit
// has flipped in it, each name has what was put or nothing, and those before the damage
// are there; what is put from then on stays.
func TestATornIndexIsNotBelieved(t *testing.T) {
	dir, rounds := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		rounds++
		path := filepath.Join(dir, fmt.Sprint(rounds))
		x, _ := open(t, path)
		const names = 8
		body := func(i int) string { return strings.Repeat(fmt.Sprint(i), 40) }
		ends := []int64{x.end}
		for i := range names {
			if err := x.put(named(fmt.Sprintf("image/%d", i), body(i))); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, x.end)
		}
		x.close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		switch rapid.IntRange(0, 2).Draw(t, "damage") {
		case 0:
			b = b[:at]
		case 1:
			b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case 2:
			clear(b[at:])
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, _ = open(t, path)
		defer x.close()
		for i := range names {
			got, err := x.get(fmt.Sprintf("image/%d", i))
			whole := ends[i+1] <= int64(at)
			if err != nil || got != nil && string(got) != body(i) || whole && got == nil && int64(at) >= ends[0] {
				t.Fatalf("%d: %q, %v, damaged at %d of %d", i, got, err, at, ends)
			}
		}
		if err := x.put(named("image/new", "new")); err != nil {
			t.Fatal(err)
		}
		x.close()
		x, _ = open(t, path)
		if got, err := x.get("image/new"); err != nil || string(got) != "new" {
			t.Fatalf("put after the damage: %q, %v", got, err)
		}
	})
}
