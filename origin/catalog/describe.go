package catalog

import (
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// VersionMax bounds the version of a record that is believed: far beyond what a name
// is ever written, and far below where the next version would be none.
const VersionMax = 1 << 62

// Content is what a record stands for.
type Content struct {
	// Head is nil for a blank volume that was never folded, for a deleted name, and for kinds without one.
	Head *pack.Head
	// Root is the CID of the head's root; zero without a head.
	Root content.CID
	// Lineage are the roots before it, the nearest first.
	Lineage []content.CID
	// Target is the image that a tag was set on.
	Target string
	// Scope says who may read the record: a deleted name's tombstone those of the farm
	// that had it, or of the mesh.
	Scope content.Scope
}

// Describe reads what a checked envelope says, as far as its signer may say it: a
// record that is for a farm tells of content of exactly that farm's scope, signed by
// one of its members, and one that is for none of content of scope mesh or public.
// Whatever goes beyond is ErrForbidden, for everybody who meets it; a body that can't
// be decoded is ErrCorrupt.
func Describe(c *content.Codec, e trust.Envelope) (Content, error) {
	d, err := describe(c, e)
	if err != nil {
		return Content{}, fmt.Errorf("record of %s %q: %w", e.Kind, e.Name, err)
	}
	return d, nil
}

func describe(c *content.Codec, e trust.Envelope) (Content, error) {
	d := Content{Scope: content.Mesh()}
	if e.Farm != "" {
		d.Scope = content.Farm(e.Farm)
	}
	switch {
	case !e.Signer.MaySign(e.Kind, e.Farm):
		return d, fmt.Errorf("%w: signed by a %s of farm %q for farm %q", content.ErrForbidden, e.Signer.Role, e.Signer.Farm, e.Farm)
	case e.Version == 0 || e.Version > VersionMax:
		return d, fmt.Errorf("%w: version %d, want 1 to %d", content.ErrInvalid, e.Version, uint64(VersionMax))
	case e.Tombstone && len(e.Body) > 0:
		return d, fmt.Errorf("%w: deleted, with a body of %d bytes", content.ErrCorrupt, len(e.Body))
	case e.Tombstone:
		return d, nil
	}
	switch e.Kind {
	case content.KindImage, content.KindTag:
		body, err := DecodeImage(c, e.Body)
		if err != nil {
			return d, err
		}
		d.Head, d.Lineage, d.Target = &body.Head, body.Lineage, body.Target
	case content.KindVolume:
		body, err := DecodeVolume(c, e.Body)
		if err != nil {
			return d, err
		}
		d.Head, d.Lineage = body.Head, body.Lineage
	case content.KindSnapshot:
		body, err := DecodeSnapshot(c, e.Name, e.Body)
		if err != nil {
			return d, err
		}
		d.Head, d.Lineage = body.Head, body.Lineage
	}
	if d.Head == nil {
		return d, nil
	}
	if d.Scope = d.Head.Scope; d.Scope.Farm() != e.Farm {
		return d, fmt.Errorf("%w: content of scope %q in a record for farm %q", content.ErrForbidden, d.Scope, e.Farm)
	}
	root, err := d.Head.Root.Encode(c)
	if err != nil {
		return d, err
	}
	d.Root = root.CID()
	return d, nil
}
