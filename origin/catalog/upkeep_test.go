package catalog

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
)

func goldenLease(t testing.TB) Lease {
	h := head(t, content.Farm("a"))
	base, parent := content.Position{Number: 12, Seq: 3456}, content.VolumeID{9}
	return Lease{
		Folded: Folded{Head: &h, Base: base, Segments: chain(base, []uint64{3, 7}, []content.VolumeID{parent, parent})},
		Size:   10 << 30, Holder: trust.PublicKey{31: 9}, What: "volume web1, read-only",
	}
}

func goldenCollection() Collection {
	return Collection{Epoch: 7, Holder: trust.PublicKey{9}, Began: 1_795_000_000_000, Seen: 1_795_000_060_000, Ended: 1_795_000_060_001, Report: []byte(`{"epoch":6}`)}
}

func TestGoldenUpkeep(t *testing.T) {
	c, lease, x := content.NewCodec(), goldenLease(t), goldenCollection()
	b, err := lease.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "lease", b)
	if back, err := DecodeLease(c, b); err != nil || !reflect.DeepEqual(back, lease) {
		t.Errorf("%+v, %v, want %+v", back, err, lease)
	}
	if b, err = x.Encode(c); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "collection", b)
	if back, err := DecodeCollection(c, b); err != nil || !reflect.DeepEqual(back, x) {
		t.Errorf("%+v, %v, want %+v", back, err, x)
	}
}

func TestBadUpkeep(t *testing.T) {
	c := content.NewCodec()
	for name, spoil := range map[string]func(*Lease){
		"no holder":  func(l *Lease) { l.Holder = trust.PublicKey{} },
		"of nothing": func(l *Lease) { l.Head, l.Segments, l.Base = nil, nil, content.Position{} },
		"a lineage":  func(l *Lease) { l.Lineage = []content.CID{cid(1)} },
		"a gap":      func(l *Lease) { l.Segments = l.Segments[1:] },
	} {
		l := goldenLease(t)
		spoil(&l)
		if _, err := l.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("lease, %s: %v, want ErrInvalid", name, err)
		}
	}
	long := goldenLease(t) // of a folder that is called anything
	long.What = strings.Repeat("x", sourceMax+1)
	b, err := long.Encode(c)
	if back, bad := DecodeLease(c, b); err != nil || bad != nil || len(back.What) != sourceMax {
		t.Errorf("lease, long words: %v, %v, %d of them", err, bad, len(back.What))
	}
	for name, spoil := range map[string]func(*Collection){
		"no epoch":      func(x *Collection) { x.Epoch = 0 },
		"no holder":     func(x *Collection) { x.Holder = trust.PublicKey{} },
		"a long report": func(x *Collection) { x.Report = make([]byte, reportMax+1) },
		"before time":   func(x *Collection) { x.Began = -1 },
	} {
		x := goldenCollection()
		spoil(&x)
		if _, err := x.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("collection, %s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzDecodeUpkeep(f *testing.F) {
	golden.Seeds(f, "lease", "collection")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := DecodeLease(c, b); err == nil {
			if again, err := l.Encode(c); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%+v came back as %x, %v", l, again, err)
			}
		} else if !errors.Is(err, content.ErrCorrupt) {
			t.Fatal(err)
		}
		if x, err := DecodeCollection(c, b); err == nil {
			if again, err := x.Encode(c); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%+v came back as %x, %v", x, again, err)
			}
		} else if !errors.Is(err, content.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
