package pack

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/grangemesh/grange/origin/content"
)

// Head is what a record holds of an image: enough to read its first block with
// three reads. The locations are hints; root and page CIDs make them checkable.
//
// Encoded as a dag-cbor map: {"magic": text, "root": encoded root as bytes,
// "scope": text, "node", "page", "manifest": extent or null}. An extent is
// [link, pack, offset, length, raw, codec, key].
type Head struct {
	Root content.Root `cbor:"root"`
	// Scope of the root: who may read it, and which packs it may refer to.
	Scope content.Scope `cbor:"scope"`
	// Node is the top map node and Page its locator page, directly behind it;
	// both zero when the image is all holes.
	Node Extent `cbor:"node"`
	Page Extent `cbor:"page"`
	// Manifest says which packs the root refers to.
	Manifest Extent `cbor:"manifest"`
}

const (
	headMagic = "grange-head/1"

	// HeadSizeMax bounds an encoded head, so that a record has room for it.
	HeadSizeMax = 1 << 10
)

type headWire struct {
	Magic   string `cbor:"magic"`
	Encoded []byte `cbor:"root"` // in place of Root
	Head
}

type extentWire struct {
	_   struct{} `cbor:",toarray"`
	CID content.CID
	Location
}

// MarshalCBOR writes an array, or null for the zero Extent.
func (e Extent) MarshalCBOR() ([]byte, error) {
	if e == (Extent{}) {
		return []byte{0xf6}, nil
	}
	return cbor.Marshal(extentWire{CID: e.CID, Location: e.Location})
}

// UnmarshalCBOR reads what MarshalCBOR wrote, and checks it.
func (e *Extent) UnmarshalCBOR(b []byte) error {
	*e = Extent{}
	if len(b) == 1 && b[0] == 0xf6 {
		return nil
	}
	var w extentWire
	if err := cbor.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("%w: %w", content.ErrCorrupt, err)
	}
	if _, err := ParseID(string(w.Pack)); err != nil {
		return fmt.Errorf("%w: %w", content.ErrCorrupt, err)
	}
	if w.CID.IsHole() {
		return fmt.Errorf("%w: extent of a hole", content.ErrCorrupt)
	}
	*e = Extent{w.CID, w.Location}
	return e.Check()
}

// Top returns the top map node with its page; zero when the image is all holes.
func (h Head) Top() Pair { return Pair{h.Node, h.Page} }

// Validate fails with ErrInvalid when h contradicts itself, and with
// ErrForbidden when it refers to packs that its scope may not.
func (h Head) Validate() error {
	if err := h.Root.Validate(); err != nil {
		return fmt.Errorf("head: %w", err)
	}
	hole := h.Root.Map.IsHole()
	switch {
	case h.Scope.IsZero():
		return fmt.Errorf("head: %w: no scope", content.ErrInvalid)
	case h.Node.CID != h.Root.Map || hole != (h.Node == Extent{}) || hole != (h.Page == Extent{}):
		return fmt.Errorf("head: %w: node %s, page %s, but the root's map is %s", content.ErrInvalid, h.Node.CID, h.Page.CID, h.Root.Map)
	case !hole && (h.Page.Pack != h.Node.Pack || h.Page.Offset != h.Node.End()):
		return fmt.Errorf("head: %w: page in %s is not directly behind the node in %s", content.ErrInvalid, h.Page.Location, h.Node.Location)
	case h.Manifest == Extent{}:
		return fmt.Errorf("head: %w: no manifest", content.ErrInvalid)
	}
	for _, e := range []Extent{h.Node, h.Page, h.Manifest} {
		if e != (Extent{}) && !e.Pack.Scope().Covers(h.Scope) {
			return fmt.Errorf("head: %w: content of scope %q refers to pack %s", content.ErrForbidden, h.Scope, e.Pack)
		}
	}
	return nil
}

// Encode returns the bytes that go into a record.
func (h Head) Encode(c *content.Codec) ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	root, err := h.Root.Encode(c)
	if err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	b, err := c.Marshal(headWire{headMagic, root.Bytes(), h})
	if err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	if len(b) > HeadSizeMax {
		return nil, fmt.Errorf("head: %w: %d bytes, the limit is %d", content.ErrInvalid, len(b), HeadSizeMax)
	}
	return b, nil
}

// DecodeHead reads an encoded head; anything but a valid one is ErrCorrupt.
func DecodeHead(c *content.Codec, b []byte) (Head, error) {
	if len(b) > HeadSizeMax {
		return Head{}, fmt.Errorf("head of %d bytes: %w: limit is %d", len(b), content.ErrCorrupt, HeadSizeMax)
	}
	var w headWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Head{}, fmt.Errorf("head: %w", err)
	}
	if w.Magic != headMagic {
		return Head{}, fmt.Errorf("head: %w: magic %.20q, want %q", content.ErrCorrupt, w.Magic, headMagic)
	}
	var err error
	if w.Root, err = content.DecodeRoot(c, w.Encoded); err != nil {
		return Head{}, fmt.Errorf("head: %w", err)
	}
	if err := w.Validate(); err != nil {
		return Head{}, fmt.Errorf("%w: %w", content.ErrCorrupt, err)
	}
	return w.Head, nil
}
