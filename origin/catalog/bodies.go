package catalog

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
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
	imageMagic  = "grange-image/1"
	volumeMagic = "grange-volume/1"

	// sourceMax bounds the text that says what was imported, in bytes.
	sourceMax = 256
	// durabilityMax bounds the text of a policy, in bytes: "farm:K" is the longest.
	durabilityMax = 16
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

// VolumeState says whether a node may take the next epoch of a volume.
type VolumeState string

// The states of a volume's record.
const (
	// Attached: the holder serves it, or did when it was last heard of.
	Attached VolumeState = "attached"
	// Released: the holder gave it up; any node of the farm may attach it.
	Released VolumeState = "released"
)

// Volume is the body of a volume's record.
//
// Encoded as a dag-cbor map: magic "grange-volume/1", id, size, from, head (the
// bytes of pack.Head, or null), durability, epoch, holder, state, readonly, folded
// (milliseconds since 1970, 0 for never).
type Volume struct {
	// ID names the volume through deletions and creations of its name.
	ID [16]byte `cbor:"id"`
	// Size of the disk in bytes; at least the root's.
	Size int64 `cbor:"size"`
	// From is what it was created from, zero for a blank disk.
	From content.Ref `cbor:"from"`
	// Head is the folded state; nil for a blank disk never folded.
	Head       *pack.Head      `cbor:"head"`
	Durability string          `cbor:"durability"`
	Epoch      uint64          `cbor:"epoch"`
	Holder     trust.PublicKey `cbor:"holder"`
	State      VolumeState     `cbor:"state"`
	ReadOnly   bool            `cbor:"readonly"`
	// FoldedAt is when the head was last folded; zero for never.
	FoldedAt time.Time `cbor:"folded"`
}

type volumeWire struct {
	Magic   string `cbor:"magic"`
	Encoded []byte `cbor:"head"`   // in place of Head
	Folded  int64  `cbor:"folded"` // in place of FoldedAt
	Volume
}

// Encode returns the body's canonical CBOR.
func (v Volume) Encode(c *content.Codec) (_ []byte, err error) {
	w := volumeWire{Magic: volumeMagic, Volume: v}
	if !v.FoldedAt.IsZero() {
		w.Folded = v.FoldedAt.UnixMilli()
	}
	if v.Head != nil {
		if w.Encoded, err = v.Head.Encode(c); err != nil {
			return nil, fmt.Errorf("volume: %w", err)
		}
	}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("volume: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(w)
}

func (w volumeWire) check() error {
	if w.Head != nil && w.Head.Root.Size > w.Size {
		return fmt.Errorf("size %d, and its root has %d bytes", w.Size, w.Head.Root.Size)
	}
	if w.Head != nil && isDisk(*w.Head) != nil {
		return isDisk(*w.Head)
	}
	if w.Magic != volumeMagic || w.Size <= 0 || w.Size > content.SizeMax || w.Folded < 0 ||
		w.State != Attached && w.State != Released || len(w.Durability) > durabilityMax {
		return fmt.Errorf("magic %.20q, size %d, state %.20q, durability %.40q, folded %d", w.Magic, w.Size, w.State, w.Durability, w.Folded)
	}
	return nil
}

// DecodeVolume reads an encoded body; anything else is ErrCorrupt.
func DecodeVolume(c *content.Codec, b []byte) (Volume, error) {
	var w volumeWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Volume{}, fmt.Errorf("volume: %w", err)
	}
	if w.Folded != 0 {
		w.FoldedAt = time.UnixMilli(w.Folded)
	}
	if len(w.Encoded) > 0 {
		head, err := pack.DecodeHead(c, w.Encoded)
		if err != nil {
			return Volume{}, fmt.Errorf("volume: %w", err)
		}
		w.Head = &head
	}
	if err := w.check(); err != nil {
		return Volume{}, fmt.Errorf("volume: %w: %w", content.ErrCorrupt, err)
	}
	return w.Volume, nil
}
