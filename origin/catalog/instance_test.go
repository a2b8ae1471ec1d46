package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
)

func goldenInstance(t testing.TB) Instance {
	i := goldenImage(t)
	i.Head.Root.Kind, i.Head.Root.Count, i.Head.Scope = content.RootTree, 1<<13, content.Farm("lyon")
	return Instance{
		ID: InstanceID{1, 2, 3}, Epoch: 7, Incarnation: 1 << 60, Holder: trust.PublicKey{9}, State: Attached, From: "tree:redis", Disk: content.VolumeID{4},
		Spec: []byte(`{"command":["redis-server"]}`), Head: &i.Head, Lineage: i.Lineage, Saved: 1_795_000_000_123,
	}
}

func TestGoldenInstances(t *testing.T) {
	c := content.NewCodec()
	fresh := goldenInstance(t)
	fresh.Head, fresh.Lineage, fresh.Saved, fresh.State, fresh.Disk = nil, []content.CID{}, 0, Released, content.VolumeID{}
	fresh.Away = content.Sum([]byte("head"))
	for name, i := range map[string]Instance{"instance": goldenInstance(t), "instance.fresh": fresh} {
		b, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeInstance(c, b); err != nil || !reflect.DeepEqual(back, i) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, i)
		}
	}
	if at := goldenInstance(t).SavedAt(); !at.Equal(time.UnixMilli(1_795_000_000_123)) || !fresh.SavedAt().IsZero() {
		t.Errorf("saved at %s", at)
	}
}

func TestBadInstances(t *testing.T) {
	c := content.NewCodec()
	for name, spoil := range map[string]func(*Instance){
		"no ID":          func(i *Instance) { i.ID = InstanceID{} },
		"no epoch":       func(i *Instance) { i.Epoch = 0 },
		"a late epoch":   func(i *Instance) { i.Epoch = VersionMax + 1 },
		"no holder":      func(i *Instance) { i.Holder = trust.PublicKey{} },
		"no state":       func(i *Instance) { i.State = "" },
		"no spec":        func(i *Instance) { i.Spec = nil },
		"a long spec":    func(i *Instance) { i.Spec = make([]byte, SpecMax+1) },
		"a disk":         func(i *Instance) { i.Head.Root.Kind, i.Head.Root.Count = content.RootDisk, 0 },
		"a hole":         func(i *Instance) { i.Lineage = make([]content.CID, 1) },
		"two places":     func(i *Instance) { i.Away = content.Sum(nil) },
		"saved too soon": func(i *Instance) { i.Saved = -1 },
	} {
		i := goldenInstance(t)
		spoil(&i)
		if _, err := i.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzDecodeInstance(f *testing.F) {
	golden.Seeds(f, "instance", "instance.fresh")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := DecodeInstance(c, b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeInstance(c, again)
		if twice, failed := back.Encode(c); err != nil || failed != nil || !bytes.Equal(again, twice) {
			t.Fatalf("%s came back as %s, %v, %v", fmt.Sprint(i), fmt.Sprint(back), err, failed)
		}
	})
}
