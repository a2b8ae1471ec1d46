package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/profile"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
)

// booted has a folder of a node that is yet to start say what a boot there has read.
func booted(t *testing.T, data string, root content.CID, chunks ...uint64) {
	t.Helper()
	raw, err := content.NewCodec().Marshal(map[string]any{
		"magic": "grange-boots/1", "root": root, "first": chunks, "at": 1, "boots": 1, "made": 0, "listed": 0, "chunks": 0, "read": 0,
	})
	dir := filepath.Join(data, "boots")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, root.String()+".boots"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestAFleetTeachesItsImages: what boots on other nodes have read is in the record; who may not read an image is told nothing of
// its boots, and a node that may not publish profiles none.
func TestAFleetTeachesItsImages(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	source, _ := disk(t)
	for _, name := range []string{"everybody", "alpha"} {
		scope := content.Mesh()
		if name == "alpha" { // another root
			scope = content.Farm(name)
			if err := os.WriteFile(source, slices.Repeat([]byte(name), 1<<18), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		v, err := m.first.Images.Import(t.Context(), name, images.ImportRequest{Options: convert.Options{Path: source, Format: "raw"}, Scope: scope})
		if why := m.first.done(t, v, err); why != "" {
			t.Fatal(why)
		}
	}
	profiled := func(n *Node, name string) string {
		v, err := n.Profiles.Begin(name, profile.Spec{Runs: new(int)})
		if err != nil {
			return content.Line(err)
		}
		return n.done(t, v, nil)
	}
	if why := profiled(m.first, "everybody"); why == "" {
		t.Error("an image is profiled of no boot")
	}
	k, ok := m.first.Names.Held(content.KindImage, "everybody")
	of, also := m.first.Names.Held(content.KindImage, "alpha")
	if !ok || !also {
		t.Fatal("its records are not held")
	}
	data := t.TempDir()
	booted(t, data, k.Root, 7, 3, 4, 1<<40) // and one that the image has not
	booted(t, data, of.Root, 1)
	second, _ := m.start(data, "second", m.token(trust.RoleNode))
	for _, name := range []string{"everybody", "alpha"} {
		if _, err := second.Images.Get(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if why := profiled(second, "everybody"); why == "" {
		t.Error("who may not publish has laid an image out")
	}
	m.await("they are connected", func() bool { return slices.Contains(m.first.readersOf(content.Mesh()), second.swarm.ID().String()) })
	if why := profiled(m.first, "everybody"); why != "" {
		t.Fatal(why)
	}
	k, _ = m.first.Names.Held(content.KindImage, "everybody")
	body, err := catalog.DecodeImage(content.NewCodec(), k.Body)
	if err != nil || !slices.Equal(slices.Collect(body.Boot.All()), []uint64{3, 4, 7}) || body.Boot.Runs != 1 {
		t.Errorf("its list is %+v, %v", body.Boot, err)
	}
	for who, want := range map[trust.Identity][2]int{
		{Role: trust.RoleNode, Farm: "alpha"}: {1, 1}, {Role: trust.RoleNode, Farm: "beta"}: {1, 0},
	} {
		for i, root := range []content.CID{k.Root, of.Root} {
			if a, err := second.Profiles.Answer(who, profile.Question{Root: root}); err != nil || len(a.Traces) != want[i] {
				t.Errorf("%s of farm %s is told of %d boots of root %d, %v", who.Role, who.Farm, len(a.Traces), i, err)
			}
		}
	}
	if a, err := second.Profiles.Answer(trust.Identity{}, profile.Question{Root: k.Root}); err == nil {
		t.Errorf("a stranger is told %v", a)
	}
}
