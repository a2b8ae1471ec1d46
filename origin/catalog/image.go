package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Image is the body of the record of an image or a tree, and of a tag of one.
//
// Encoded as a dag-cbor map: magic "grange-image/1", head (the bytes of
// pack.Head), lineage, source, chunks, stored, target for a tag, files where it is true, and boot (the bytes of Boot)
// where there is one.
type Image struct {
	Head pack.Head `cbor:"head"`
	// Lineage are the roots that this name stood for before, the newest first:
	// members that hold one may hold chunks of this image.
	Lineage []content.CID `cbor:"lineage"`
	// Source says what was imported, for people.
	Source string `cbor:"source"`
	// Chunks that are not holes, and the bytes that they take when stored.
	Chunks uint64 `cbor:"chunks"`
	Stored uint64 `cbor:"stored"`
	// Target is the image or tree that a tag was set on; "" for what is no tag.
	Target string `cbor:"target,omitempty"`
	// Files tells of a disk that who signed it has itself made the file system, of files: what a
	// guest or a stranger wrote is not in its structures.
	Files bool `cbor:"files,omitempty"`
	// Boot are the chunks of the head's root that a boot wants; nil where nobody knows.
	Boot *Boot `cbor:"-"`
}

type imageWire struct {
	Magic   string   `cbor:"magic"`
	Encoded []byte   `cbor:"head"` // in place of Head
	List    bootWire `cbor:"boot,omitempty"`
	Image
}

const (
	imageMagic = "grange-image/1"

	// sourceMax bounds the text that says what was imported, in bytes.
	sourceMax = 256
)

// Encode returns the body's canonical CBOR. Lineage and source are cut to their limits.
func (i Image) Encode(c *content.Codec) ([]byte, error) {
	head, err := i.Head.Encode(c)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	i.Lineage = append([]content.CID{}, i.Lineage[:min(len(i.Lineage), content.LineageMax)]...)
	i.Source = strings.ToValidUTF8(i.Source[:min(len(i.Source), sourceMax)], "") // a file name may be anything
	w := imageWire{Magic: imageMagic, Encoded: head, Image: i}
	if w.List, err = i.Boot.encodeFor(c, i.Head); err == nil {
		err = w.check()
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(w)
}

func (w imageWire) check() error {
	if slices.Contains(w.Lineage, content.CID{}) {
		return errors.New("an ancestor is a hole")
	}
	if w.Target != "" {
		if err := content.KindImage.CheckName(w.Target); err != nil {
			return err
		}
	}
	if w.Magic != imageMagic || len(w.Lineage) > content.LineageMax || len(w.Source) > sourceMax {
		return fmt.Errorf("magic %.20q, %d ancestors, source of %d bytes", w.Magic, len(w.Lineage), len(w.Source))
	}
	return nil
}

// isDisk fails for what no guest could read.
func isDisk(h pack.Head) error {
	if h.Root.Kind != content.RootDisk {
		return fmt.Errorf("its root is a %s, not a disk", h.Root.Kind)
	}
	return nil
}

// isOf fails with ErrCorrupt for an image that is no disk, and a tree that is none.
func isOf(kind content.Kind, h pack.Head) error {
	if kind == content.KindImage && h.Root.Kind != content.RootDisk || kind == content.KindTree && h.Root.Kind != content.RootTree {
		return fmt.Errorf("%w: a record of kind %s has a root of kind %q", content.ErrCorrupt, kind, h.Root.Kind)
	}
	return nil
}

// DecodeImage reads an encoded body; anything else is ErrCorrupt.
func DecodeImage(c *content.Codec, b []byte) (Image, error) {
	var w imageWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Image{}, fmt.Errorf("image: %w", err)
	}
	var err error
	if w.Head, err = pack.DecodeHead(c, w.Encoded); err != nil {
		return Image{}, fmt.Errorf("image: %w", err)
	}
	if w.Boot, err = w.List.of(c, w.Head); err == nil {
		err = w.check()
	}
	if err != nil {
		return Image{}, fmt.Errorf("image: %w: %w", content.ErrCorrupt, err)
	}
	return w.Image, nil
}

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
	// Segments are those that it names, and Volume whose record it is, zero for none.
	Segments []content.SegmentRef
	Volume   content.VolumeID
	// Through is up to where a volume's record has its journal: what lies behind may be acknowledged.
	Through content.Position
	// Leased is the head of a lease, which keeps its content and stands for nothing; For says what for.
	Leased *pack.Head
	For    string
	// Target is the image that a tag was set on.
	Target string
	// Scope says who may read the record: a deleted name's tombstone those of the farm
	// that had it, or of the mesh.
	Scope content.Scope
}

// Describe reads what a checked envelope says, as far as its signer may say it: a record that is for a farm
// tells of content of exactly that farm's scope, signed by one of its members, and one that is for none of
// content of scope mesh or public. Whatever goes beyond is ErrForbidden, for everybody who meets it; a body
// that can't be decoded is ErrCorrupt.
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
	said, _, err := Decode(c, e)
	if err == nil && said.Head != nil {
		err = isOf(e.Kind, *said.Head)
	}
	if said.Scope = d.Scope; err != nil {
		return d, err
	}
	d = said
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

// Decode reads the body of an envelope that is no tombstone, whoever signed that, and returns what encodes it again: nil
// for a kind without a body that stands for anything. Root and Scope are left out.
func Decode(c *content.Codec, e trust.Envelope) (d Content, again func(*content.Codec) ([]byte, error), err error) {
	switch e.Kind {
	case content.KindImage, content.KindTag, content.KindTree:
		var body Image
		body, err = DecodeImage(c, e.Body)
		d, again = Content{Head: &body.Head, Lineage: body.Lineage, Target: body.Target}, body.Encode
	case content.KindVolume:
		var body Volume
		body, err = DecodeVolume(c, e.Body)
		d, again = Content{Head: body.Head, Lineage: body.Lineage, Segments: body.Segments, Volume: body.ID, Through: body.Through()}, body.Encode
	case content.KindLease:
		var body Lease
		body, err = DecodeLease(c, e.Body)
		d, again = Content{Leased: body.Head, For: body.What, Segments: body.Segments}, body.Encode
	case content.KindInstance:
		var body Instance
		body, err = DecodeInstance(c, e.Body)
		d, again = Content{Head: body.Head, Lineage: body.Lineage}, body.Encode
	case content.KindSnapshot:
		var body Snapshot
		body, err = DecodeSnapshot(c, e.Name, e.Body)
		d, again = Content{Head: body.Head, Lineage: body.Lineage, Segments: body.Segments}, body.Encode
	}
	return d, again, err
}
