package catalog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Image is the body of an image's record, and of a tag's.
//
// Encoded as a dag-cbor map: magic "grange-image/1", head (the bytes of
// pack.Head), lineage, source, chunks, stored, target for a tag, and tree where it is true.
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
	// Target is the image that a tag was set on; "" for an image.
	Target string `cbor:"target,omitempty"`
	// Tree tells that who signed it has itself made the file system, of files: what a
	// guest or a stranger wrote is not in its structures.
	Tree bool `cbor:"tree,omitempty"`
}

type imageWire struct {
	Magic   string `cbor:"magic"`
	Encoded []byte `cbor:"head"` // in place of Head
	Image
}

const (
	imageMagic = "grange-image/1"

	// sourceMax bounds the text that says what was imported, in bytes.
	sourceMax = 256
)

// Encode returns the body's canonical CBOR. Lineage and source are cut to their
// limits.
func (i Image) Encode(c *content.Codec) ([]byte, error) {
	head, err := i.Head.Encode(c)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	i.Lineage = append([]content.CID{}, i.Lineage[:min(len(i.Lineage), content.LineageMax)]...)
	i.Source = strings.ToValidUTF8(i.Source[:min(len(i.Source), sourceMax)], "") // a file name may be anything
	w := imageWire{imageMagic, head, i}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("image: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(w)
}

func (w imageWire) check() error {
	for _, id := range w.Lineage {
		if id.IsHole() {
			return errors.New("an ancestor is a hole")
		}
	}
	if w.Target != "" {
		if err := content.KindImage.CheckName(w.Target); err != nil {
			return err
		}
	}
	if err := isDisk(w.Head); err != nil {
		return err
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
	if err := w.check(); err != nil {
		return Image{}, fmt.Errorf("image: %w: %w", content.ErrCorrupt, err)
	}
	return w.Image, nil
}
