package catalog

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Image is the body of an image's record, and of a tag's.
type Image struct {
	Head pack.Head
	// Lineage are the roots that this name stood for before, the newest first:
	// members that hold one may hold chunks of this image.
	Lineage []content.CID
	// Source says what was imported, for people.
	Source string
	// Chunks that are not holes, and the bytes that they take when stored.
	Chunks, Stored uint64
	// Target is the image that a tag was set on; "" for an image.
	Target string
}

type imageWire struct {
	Magic   string        `cbor:"magic"`
	Head    []byte        `cbor:"head"`
	Lineage []content.CID `cbor:"lineage"`
	Source  string        `cbor:"source"`
	Chunks  uint64        `cbor:"chunks"`
	Stored  uint64        `cbor:"stored"`
	Target  string        `cbor:"target,omitempty"`
}

const (
	imageMagic  = "grange-image/1"
	volumeMagic = "grange-volume/1"

	// sourceMax bounds the text that says what was imported, in bytes.
	sourceMax = 256
)

// Encode returns the body's canonical CBOR.
func (i Image) Encode(c *content.Codec) ([]byte, error) {
	head, err := i.Head.Encode(c)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return c.Marshal(imageWire{imageMagic, head, i.Lineage[:min(len(i.Lineage), content.LineageMax)], i.Source[:min(len(i.Source), sourceMax)], i.Chunks, i.Stored, i.Target})
}

// DecodeImage reads an encoded body; anything else is ErrCorrupt.
func DecodeImage(c *content.Codec, b []byte) (Image, error) {
	var w imageWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Image{}, fmt.Errorf("image: %w", err)
	}
	if w.Magic != imageMagic || len(w.Lineage) > content.LineageMax {
		return Image{}, fmt.Errorf("image: %w: magic %.20q with %d ancestors", content.ErrCorrupt, w.Magic, len(w.Lineage))
	}
	head, err := pack.DecodeHead(c, w.Head)
	if err != nil {
		return Image{}, fmt.Errorf("image: %w", err)
	}
	return Image{head, w.Lineage, w.Source, w.Chunks, w.Stored, w.Target}, nil
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
type Volume struct {
	// ID names the volume through deletions and creations of its name.
	ID [16]byte
	// Size of the disk in bytes; at least the root's.
	Size int64
	// From is what it was created from, zero for a blank disk.
	From content.Ref
	// Head is the folded state; nil for a blank disk never folded.
	Head       *pack.Head
	Durability string
	Epoch      uint64
	Holder     trust.PublicKey
	State      VolumeState
	ReadOnly   bool
	// FoldedAt is when the head was last folded; zero for never.
	FoldedAt time.Time
}

type volumeWire struct {
	Magic      string          `cbor:"magic"`
	ID         [16]byte        `cbor:"id"`
	Size       int64           `cbor:"size"`
	From       content.Ref     `cbor:"from"`
	Head       []byte          `cbor:"head"`
	Durability string          `cbor:"durability"`
	Epoch      uint64          `cbor:"epoch"`
	Holder     trust.PublicKey `cbor:"holder"`
	State      VolumeState     `cbor:"state"`
	ReadOnly   bool            `cbor:"readonly"`
	FoldedAt   int64           `cbor:"folded"`
}

// Encode returns the body's canonical CBOR.
func (v Volume) Encode(c *content.Codec) ([]byte, error) {
	w := volumeWire{Magic: volumeMagic, ID: v.ID, Size: v.Size, From: v.From, Durability: v.Durability, Epoch: v.Epoch, Holder: v.Holder, State: v.State, ReadOnly: v.ReadOnly}
	if !v.FoldedAt.IsZero() {
		w.FoldedAt = v.FoldedAt.UnixMilli()
	}
	if v.Head != nil {
		head, err := v.Head.Encode(c)
		if err != nil {
			return nil, fmt.Errorf("volume: %w", err)
		}
		w.Head = head
	}
	return c.Marshal(w)
}

// DecodeVolume reads an encoded body; anything else is ErrCorrupt.
func DecodeVolume(c *content.Codec, b []byte) (Volume, error) {
	var w volumeWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Volume{}, fmt.Errorf("volume: %w", err)
	}
	if w.Magic != volumeMagic || w.Size <= 0 || w.Size > content.SizeMax {
		return Volume{}, fmt.Errorf("volume: %w: magic %.20q, size %d", content.ErrCorrupt, w.Magic, w.Size)
	}
	v := Volume{ID: w.ID, Size: w.Size, From: w.From, Durability: w.Durability, Epoch: w.Epoch, Holder: w.Holder, State: w.State, ReadOnly: w.ReadOnly}
	if w.FoldedAt != 0 {
		v.FoldedAt = time.UnixMilli(w.FoldedAt)
	}
	if len(w.Head) > 0 {
		head, err := pack.DecodeHead(c, w.Head)
		if err != nil {
			return Volume{}, fmt.Errorf("volume: %w", err)
		}
		v.Head = &head
	}
	return v, nil
}
