package cache

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

func TestFormats(t *testing.T) {
	at := newPlace(3, 5)
	n := name{content.Sum([]byte("grange")), 131072, ReachPublic}
	b := n.encode(at)
	golden.Check(t, "name", b[:])
	if got, ok := decodeName(b[:], at); !ok || got != n {
		t.Errorf("decoded: %v, %v", got, ok)
	}
	if _, ok := decodeName(b[:], at+1); ok {
		t.Error("a name is taken at another place")
	}
	header := make([]byte, 64)
	fillHeader(header, shape{10, 32}, secret{0x0123456789abcdef, 0xfedcba9876543210})
	golden.Check(t, "header", header)
	k := secret{1, 2}.key(n.id)
	w := k.word().withFreq(1).withPeriod(2).withDay(3) | mainBit | fullBit
	if w.tag() != k.tag || w.freq() != 1 || w.period() != 2 || w.day() != 3 || !w.main() || w.pinned() || !w.full() {
		t.Errorf("word %x", uint64(w))
	}
	c := build(t, Config{})
	if err := c.Pin("p", 0, slices.Values([]content.CID{content.Sum([]byte("b")), {}, content.Sum([]byte("a")), content.Sum([]byte("a"))})); err != nil {
		t.Fatal(err)
	}
	pinned, err := os.ReadFile(c.pinPath("p"))
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "pins", pinned)
}

func FuzzDecodeName(f *testing.F) {
	b := name{content.Sum([]byte("grange")), 131072, ReachPublic}.encode(7)
	f.Add(b[:], uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, at uint32) {
		if len(b) != nameSize {
			return
		}
		if n, ok := decodeName(b, place(at)); ok {
			if again := n.encode(place(at)); !bytes.Equal(again[:], b) {
				t.Errorf("%x is encoded as %x", b, again)
			}
		}
	})
}

// FuzzIndex lays a table over any bytes.
func FuzzIndex(f *testing.F) {
	size := shape{2, bucketSize}
	raw := make([]byte, size.bytes())
	fillHeader(raw, size, secret{1, 2})
	f.Add(raw[:64], []byte("entries"))
	f.Fuzz(func(t *testing.T, header, rest []byte) {
		raw := make([]byte, size.bytes())
		copy(raw, header[:min(len(header), 64)])
		copy(raw[headerSize:], rest)
		table, err := newTable(raw)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		c := &Cache{names: names{}}
		c.cfg, _ = Config{Dir: "unused", Quota: quotaMin}.withDefaults()
		for i := range table.words {
			if cl, ok := table.class(table.place(i).slab()); ok {
				c.slabs.claim(table.place(i), cl)
			}
		}
		table.find(headerOf(raw).secret.key(content.Sum(rest)))
	})
}
