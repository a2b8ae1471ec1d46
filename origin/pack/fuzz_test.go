package pack

import (
	"bytes"
	"errors"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

// refused fails unless err is one of those that a decoder may give.
func refused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrForbidden) {
		t.Fatalf("a decoder's error must be ErrCorrupt or ErrForbidden: %v", err)
	}
}

func FuzzPage(f *testing.F) {
	golden.Seeds(f, "leaf.page", "upper.page")
	f.Fuzz(func(t *testing.T, b []byte) {
		for level := 1; level <= 2; level++ {
			p, err := DecodePage(content.Mesh(), level, b)
			if err != nil {
				refused(t, err)
				continue
			}
			var packs Table
			entries := make([]Child, p.Len())
			for i := range entries {
				at, ok := p.Child(i)
				if !ok {
					continue
				}
				entries[i] = Child{CID: content.CID{1}, At: packs.Place(at)}
				if pair, ok := p.ChildPair(content.Node{}, i); ok {
					entries[i].PageCID, entries[i].Page = pair.Page.CID, packs.Place(pair.Page.Location)
				}
			}
			if again := EncodePage(level, &packs, entries); !bytes.Equal(again, b) {
				t.Fatalf("decoded and encoded again:\n%x\nwas\n%x", again, b)
			}
		}
	})
}

func FuzzHead(f *testing.F) {
	golden.Seeds(f, "head", "head.holes")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHead(c, b)
		if err != nil {
			refused(t, err)
			return
		}
		again, err := h.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeHead(c, again); err != nil || got != h {
			t.Fatalf("%+v came back as %+v, error %v", h, got, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	golden.Seeds(f, "manifest")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(c, b)
		if err != nil {
			refused(t, err)
			return
		}
		v, err := m.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(v.Bytes(), b) {
			t.Fatalf("decoded and encoded again:\n%x\nwas\n%x", v.Bytes(), b)
		}
	})
}

func FuzzPack(f *testing.F) {
	golden.Seeds(f, "raw.pack", "signed.pack", "stub.pack")
	f.Fuzz(func(t *testing.T, b []byte) {
		from := holding(t, b)
		whole, wholeErr := NewReader(from).ParsePack(t.Context(), goldenMesh, b)
		if wholeErr == nil {
			for _, e := range whole.Entries {
				_ = NewReader(from).CheckFrame(e.Extent, b)
			}
		} else {
			refused(t, wholeErr)
		}
		if err := verifyPack(t.Context(), from, goldenMesh); err != nil {
			refused(t, err)
			return
		}
		if wholeErr != nil {
			t.Fatalf("a pack that is whole is refused as one: %v", wholeErr)
		}
		if _, err := NewReader(from).ReadDirectory(t.Context(), goldenMesh); err != nil {
			t.Fatalf("a pack that is whole has no directory: %v", err)
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	f.Add("farm/a/2026112022-000102030405060708090a0b0c0d0e0f")
	f.Add("farm/../2026112022-000102030405060708090a0b0c0d0e0f")
	f.Add("mesh/2026139922-000102030405060708090a0b0c0d0e0f")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !errors.Is(err, content.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseKey(id.Key()); err != nil || again != id || string(id) != s || len(s) > IDSizeMax || id.Scope().IsZero() {
			t.Fatalf("%q came back as %q, error %v", s, again, err)
		}
	})
}
