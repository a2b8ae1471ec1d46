package garbage

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

func goldenBatch() Batch {
	return Batch{
		Since: 1_795_000_000_123, Epoch: 7, Condemned: true,
		Delete: []string{"journals/00000000000000000000000000000001/0000000000000003-0000000000000001-tail", "packs/mesh/2026112022-000102030405060708090a0b0c0d0e0f.pack"},
		Repack: []string{"packs/farm/a/2026112022-ff0102030405060708090a0b0c0d0e0f.pack"},
	}
}

func TestGoldenBatch(t *testing.T) {
	c := content.NewCodec()
	b, err := goldenBatch().encode(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "batch", b)
	if back, err := decodeBatch(c, b); err != nil || !reflect.DeepEqual(back, goldenBatch()) {
		t.Fatalf("%+v, %v", back, err)
	}
}

// TestBadBatches: what is never deleted gets no tombstone, whoever writes it.
func TestBadBatches(t *testing.T) {
	c := content.NewCodec()
	for name, keys := range map[string][]string{
		"a record":     {"records/image/debian"},
		"the mesh":     {content.KeyMesh},
		"an index":     {"index/mesh/2026112022-000102030405060708090a0b0c0d0e0f.index"},
		"twice":        {"packs/a", "packs/a"},
		"out of order": {"packs/b", "packs/a"},
		"no key":       {"packs//a"},
		"too many":     make([]string, batchMax+1),
	} {
		if _, err := (Batch{Delete: keys}).encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	golden.Seeds(f, "batch")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeBatch(c, b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, err := got.encode(c); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%+v came back as %x, %v", got, again, err)
		}
	})
}
