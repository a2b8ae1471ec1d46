package content

import (
	"bytes"
	"testing"

	"github.com/grangemesh/grange/simulations/golden"
)

func FuzzRoot(f *testing.F) {
	golden.Seeds(f, "root", "root.holes", "root.tree")
	c := NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRoot(c, b)
		if err != nil {
			wantErr(t, err, ErrCorrupt)
			return
		}
		if again := must(r.Encode(c))(t).Bytes(); !bytes.Equal(again, b) {
			t.Fatalf("decoded and encoded again: %x, was %x", again, b)
		}
	})
}

func FuzzNode(f *testing.F) {
	golden.Seeds(f, "node")
	c := NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		for level := range LevelMax + 2 {
			n, err := DecodeNode(c, level, b)
			if err != nil {
				wantErr(t, err, ErrCorrupt)
				continue
			}
			if again := n.Encode(); !bytes.Equal(again.Bytes(), b) || n.Level != level || n.IsHole() {
				t.Fatalf("decoded and encoded again: %x, was %x", again.Bytes(), b)
			}
		}
	})
}

func FuzzBitmap(f *testing.F) {
	for _, indexes := range [][]uint64{{}, {0}, {1, 2, 3, 4, 5, 1 << 20}, {1<<32 - 1}} {
		var b Bitmap
		for _, i := range indexes {
			b.Add(i)
		}
		encoded, err := b.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		b, err := DecodeBitmap(encoded)
		if err != nil {
			wantErr(t, err, ErrCorrupt)
			return
		}
		n := uint64(0)
		b.All(func(i uint64) bool {
			if n++; !b.Has(i) {
				t.Fatalf("index %d is listed, not had", i)
			}
			return n < 1000
		})
		sum := b.Clone()
		sum.Union(b)
		sum.Add(5)
		if sum.Len() != b.Len() && (b.Has(5) || sum.Len() != b.Len()+1) {
			t.Fatalf("%d indexes, with one more %d", b.Len(), sum.Len())
		}
		sum.Remove(5)
		again := must(b.Encode())(t)
		if back := must(DecodeBitmap(again))(t); back.Len() != b.Len() {
			t.Fatalf("%d indexes came back as %d", b.Len(), back.Len())
		}
	})
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "image:a", "volume:a?at=folded", "snapshot:a@7", "snapshot:a@e7-orphan", "public", "farm/x", Sum(nil).String()} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ref, err := ParseRef(s); err != nil {
			wantErr(t, err, ErrInvalid)
		} else if ref.String() != s {
			t.Fatalf("reference %q came back as %q", s, ref)
		}
		if scope, err := ParseScope(s); err != nil {
			wantErr(t, err, ErrInvalid)
		} else if scope.String() != s || scope.IsZero() {
			t.Fatalf("scope %q came back as %q", s, scope)
		}
		if id, err := ParseCID(s); err != nil {
			wantErr(t, err, ErrInvalid)
		} else if again := must(ParseCID(id.String()))(t); again != id {
			t.Fatalf("CID %q came back as %s", s, again)
		}
	})
}
