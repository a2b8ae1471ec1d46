package pack

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/origin/content"
)

// Manifest says what a root needs in the bucket. Garbage collection marks by it.
//
// Encoded as a dag-cbor map: {"magic": text, "root": link, "packs": [[text, refs,
// bytes]], "page": link or null, "lineage": [link]}.
type Manifest struct {
	// Root names the encoded root.
	Root content.CID `cbor:"root"`
	// Packs are all packs that the root refers to, by rising ID, each once.
	Packs []PackRefs `cbor:"packs"`
	// Page is the top locator page; zero when the image is all holes.
	Page content.CID `cbor:"page"`
	// Lineage are the roots that this one came from, nearest first, at most
	// content.LineageMax.
	Lineage []content.CID `cbor:"lineage"`
}

// PackRefs is what a root needs of one pack.
type PackRefs struct {
	_  struct{} `cbor:",toarray"`
	ID ID
	// Refs counts the places of the map whose chunk or node lies in the pack, Bytes
	// the frames there, a node's with its page's. A place counts though another
	// names the same object: so whoever knows what a root drops and gains keeps
	// both up without reading what stays. A pack that holds the root or the manifest
	// alone has neither.
	Refs, Bytes uint64
}

const (
	manifestMagic = "grange-manifest/2"

	// ManifestSizeMax bounds an encoded manifest, in bytes: the packs of SizeMax
	// of dense content at SizeTarget, by their usual names.
	ManifestSizeMax = 32 << 20
)

type manifestWire struct {
	Magic string `cbor:"magic"`
	Manifest
}

// Encode returns the bytes that the head names.
func (m Manifest) Encode(c *content.Codec) (content.Verified, error) {
	if len(m.Lineage) > content.LineageMax {
		return content.Verified{}, fmt.Errorf("manifest: %w: %d ancestors, the limit is %d", content.ErrInvalid, len(m.Lineage), content.LineageMax)
	}
	m.Packs, m.Lineage = append([]PackRefs{}, m.Packs...), append([]content.CID{}, m.Lineage...) // empty lists, never null
	b, err := c.Marshal(manifestWire{manifestMagic, m})
	if err != nil {
		return content.Verified{}, fmt.Errorf("manifest: %w", err)
	}
	if len(b) > ManifestSizeMax {
		return content.Verified{}, fmt.Errorf("manifest: %w: %d packs in %d bytes, the limit is %d", content.ErrInvalid, len(m.Packs), len(b), ManifestSizeMax)
	}
	return content.Seal(b), nil
}

// Pack returns what the root needs of a pack; false for nothing.
func (m Manifest) Pack(id ID) (PackRefs, bool) {
	i, ok := slices.BinarySearchFunc(m.Packs, id, func(p PackRefs, id ID) int { return cmp.Compare(p.ID, id) })
	if !ok {
		return PackRefs{}, false
	}
	return m.Packs[i], true
}

// DecodeManifest reads an encoded manifest; anything but the one encoding of a
// valid one is ErrCorrupt.
func DecodeManifest(c *content.Codec, b []byte) (Manifest, error) {
	if len(b) > ManifestSizeMax {
		return Manifest{}, fmt.Errorf("manifest of %d bytes: %w: limit is %d", len(b), content.ErrCorrupt, ManifestSizeMax)
	}
	var w manifestWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	if w.Magic != manifestMagic || w.Root.IsHole() || len(w.Lineage) > content.LineageMax || slices.Contains(w.Lineage, content.CID{}) {
		return Manifest{}, fmt.Errorf("manifest: %w: magic %.20q, root %s, %d ancestors", content.ErrCorrupt, w.Magic, w.Root, len(w.Lineage))
	}
	for i, p := range w.Packs {
		if _, err := ParseID(string(p.ID)); err != nil {
			return Manifest{}, fmt.Errorf("manifest: %w: %w", content.ErrCorrupt, err)
		}
		if i > 0 && w.Packs[i-1].ID >= p.ID {
			return Manifest{}, fmt.Errorf("manifest: %w: packs out of order", content.ErrCorrupt)
		}
	}
	if again, err := w.Manifest.Encode(c); err != nil || !bytes.Equal(again.Bytes(), b) {
		return Manifest{}, fmt.Errorf("manifest: %w: not the canonical encoding", content.ErrCorrupt)
	}
	return w.Manifest, nil
}
