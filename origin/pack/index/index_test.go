package index

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"unsafe"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/golden"
	"github.com/grangemesh/grange/origin/pack"
)

func TestAnEntryIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != 48 {
		t.Fatalf("%d bytes an entry, want 48", n)
	}
}

func clone(p Pack) Pack {
	p.Entries, p.Signature = append([]byte{}, p.Entries...), append([]byte{}, p.Signature...)
	return p
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
	var b bytes.Buffer
	packs := []Pack{
		{ID: public, Entries: []byte{}, Signature: []byte{}},
		{ID: mesh, Entries: s.Directory, Signature: []byte("signature"), modified: 1 << 60, checked: 5},
	}
	sources := []string{string(content.KeyIndexes) + string(mesh) + indexSuffix}
	if err := writeIndexTo(&b, packs, sources); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "index", b.Bytes())
	var got []Pack
	gotSources, err := readIndexFrom(&b, func(p Pack) error {
		got = append(got, clone(p))
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, packs) || !reflect.DeepEqual(gotSources, sources) {
		t.Fatalf("%v %v, error %v", got, gotSources, err)
	}
}

func FuzzIndex(f *testing.F) {
	golden.Seeds(f, "index")
	f.Fuzz(func(t *testing.T, b []byte) {
		var packs []Pack
		r := bytes.NewReader(b)
		sources, err := readIndexFrom(r, func(p Pack) error {
			packs = append(packs, clone(p))
			return nil
		})
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatalf("a decoder's error must be ErrCorrupt: %v", err)
			}
			return
		}
		var again bytes.Buffer
		if err := writeIndexTo(&again, packs, sources); err != nil {
			t.Fatal(err)
		}
		if whole := b[:len(b)-r.Len()]; !bytes.Equal(again.Bytes(), whole) {
			t.Fatalf("read and written again:\n%x\nwas\n%x", again.Bytes(), whole)
		}
	})
}
