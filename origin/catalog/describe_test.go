package catalog

import (
	"errors"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// TestWhoMaySayWhat goes through all roles, kinds, farms that a record may be for, and
// scopes of what it stands for. A member of farm a signs.
func TestWhoMaySayWhat(t *testing.T) {
	c := content.NewCodec()
	scopes := []content.Scope{content.Public(), content.Mesh(), content.Farm("a"), content.Farm("b")}
	id, err := pack.ParseID("public/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	body := func(kind content.Kind, scope content.Scope) []byte {
		h := head(t, content.Mesh())
		h.Scope, h.Node.Pack, h.Page.Pack, h.Manifest.Pack = scope, id, id, id
		b, err := Image{Head: h, Lineage: []content.CID{}}.Encode(c)
		if kind == content.KindVolume {
			b, err = Volume{Size: h.Root.Size, Folded: Folded{Head: &h}, Policy: PolicyLocal, State: Released}.Encode(c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// For each farm that the record is for, "", a and b, one letter for each scope, and
	// one for a tombstone.
	const nothing, own, all = "..... ..... .....", "..... ..y.y .....", "yy..y ..y.y ....."
	for role, want := range map[trust.Role]map[content.Kind]string{
		"":                  {content.KindImage: nothing, content.KindTag: nothing, content.KindVolume: nothing},
		trust.RoleSeed:      {content.KindImage: nothing, content.KindTag: nothing, content.KindVolume: nothing},
		trust.RoleNode:      {content.KindImage: nothing, content.KindTag: nothing, content.KindVolume: own},
		trust.RolePublisher: {content.KindImage: all, content.KindTag: all, content.KindVolume: own},
		trust.RoleAdmin:     {content.KindImage: all, content.KindTag: all, content.KindVolume: own},
	} {
		for kind, want := range want {
			var got []byte
			for i, farm := range []string{"", "a", "b"} {
				if i > 0 {
					got = append(got, ' ')
				}
				e := trust.Envelope{Kind: kind, Name: "x", Version: 1, Farm: farm, Signer: trust.Identity{Role: role, Farm: "a"}}
				mark := func(want content.Scope) {
					switch d, err := Describe(c, e); {
					case err == nil && d.Scope == want:
						got = append(got, 'y')
					case errors.Is(err, content.ErrForbidden):
						got = append(got, '.')
					default:
						t.Errorf("a %s for farm %q signs %s of %s: %+v, %v", role, farm, kind, want, d, err)
					}
				}
				for _, s := range scopes {
					e.Body = body(kind, s)
					mark(s)
				}
				e.Body, e.Tombstone = nil, true
				if farm == "" {
					mark(content.Mesh())
				} else {
					mark(content.Farm(farm))
				}
			}
			if string(got) != want {
				t.Errorf("%s by a %q: %s, want %s", kind, role, got, want)
			}
		}
	}
}

// TestWhatIsNoRecord of anything.
func TestWhatIsNoRecord(t *testing.T) {
	c := content.NewCodec()
	volume, err := goldenVolume(t).Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	good := trust.Envelope{Kind: content.KindVolume, Name: "v", Version: 1, Farm: "a", Body: volume, Signer: trust.Identity{Role: trust.RoleNode, Farm: "a"}}
	for name, x := range map[string]struct {
		spoil func(*trust.Envelope)
		want  error
	}{
		"a good one":            {func(*trust.Envelope) {}, nil},
		"the last version":      {func(e *trust.Envelope) { e.Version = VersionMax }, nil},
		"no version":            {func(e *trust.Envelope) { e.Version = 0 }, content.ErrInvalid},
		"a version too large":   {func(e *trust.Envelope) { e.Version = VersionMax + 1 }, content.ErrInvalid},
		"the largest version":   {func(e *trust.Envelope) { e.Version = 1<<64 - 1 }, content.ErrInvalid},
		"no body":               {func(e *trust.Envelope) { e.Body = nil }, content.ErrCorrupt},
		"junk":                  {func(e *trust.Envelope) { e.Body = []byte("junk") }, content.ErrCorrupt},
		"a deleted one's body":  {func(e *trust.Envelope) { e.Tombstone = true }, content.ErrCorrupt},
		"another kind":          {func(e *trust.Envelope) { e.Kind, e.Farm, e.Signer.Role = content.KindImage, "", trust.RoleAdmin }, content.ErrCorrupt},
		"a kind without a role": {func(e *trust.Envelope) { e.Kind = "x" }, content.ErrForbidden},
	} {
		e := good
		x.spoil(&e)
		if _, err := Describe(c, e); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
}
