package index

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"unsafe"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/golden"
)

func TestAnEntryIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != 48 {
		t.Fatalf("%d bytes an entry, want 48", n)
	}
}

func TestGoldenIndex(t *testing.T) {
	const public, mesh = pack.ID("public/2025010100-ffeeddccbbaa99887766554433221100"), pack.ID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	w := pack.NewWriter(mesh, nil)
	for role := pack.RoleChunk; role <= pack.RoleManifest; role++ {
		b := bytes.Repeat([]byte{byte(role)}, 10*int(role))
		w.Add(role, content.Sum(b), len(b), pack.CodecRaw, b)
	}
	s, err := w.Seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	packs := []Pack{
		{ID: public, Entries: []byte{}, Signature: []byte{}},
		{ID: mesh, Entries: s.Directory, Signature: []byte("signature"), Modified: 1 << 60, Checked: 5},
	}
	sources := []string{string(content.KeyIndexes) + string(mesh) + indexSuffix}
	b, err := encodeIndex(packs, sources)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "index", b)
	got, gotSources, err := decodeIndex(b)
	if err != nil || !reflect.DeepEqual(got, packs) || !reflect.DeepEqual(gotSources, sources) {
		t.Fatalf("%v %v, error %v", got, gotSources, err)
	}
}

func FuzzIndex(f *testing.F) {
	golden.Seeds(f, "index")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= content.CIDSize { // what is behind the checksum is what is decoded
			sum := content.Sum(b[content.CIDSize:])
			b = append(sum[:], b[content.CIDSize:]...)
		}
		packs, sources, err := decodeIndex(b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatalf("a decoder's error must be ErrCorrupt: %v", err)
			}
			return
		}
		again, err := encodeIndex(packs, sources)
		if err != nil {
			t.Fatal(err)
		}
		back, backSources, err := decodeIndex(again)
		if err != nil || !reflect.DeepEqual(back, packs) || !reflect.DeepEqual(backSources, sources) {
			t.Fatalf("%v %v came back as %v %v, error %v", packs, sources, back, backSources, err)
		}
	})
}
