package pack

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// Head is what a record holds of an image: enough to read its first block with
// three reads. The locations are hints; root and page CIDs make them checkable.
//
// Encoded as a dag-cbor array: magic "grange-head/2", root (its encoding), scope, then
// node, page and manifest as frames: [link, pack, offset, length, raw, codec, key], and
// null for node and page where the image is all holes. What follows from the rest is not
// there: the node's link, the page's pack and offset, the manifest's pack where it is the
// node's, and the scope of packs that are of the head's own.
type Head struct {
	Root content.Root
	// Scope of the root: who may read it, and which packs it may refer to.
	Scope content.Scope
	// Node is the top map node and Page its locator page, directly behind it;
	// both zero when the image is all holes.
	Node Extent
	Page Extent
	// Manifest says which packs the root refers to.
	Manifest Extent
}

const (
	headMagic = "grange-head/2"

	// HeadSizeMax bounds an encoded head, so that a record has room for it.
	HeadSizeMax = 1 << 10
)

type headWire struct {
	_                    struct{} `cbor:",toarray"`
	Magic                string
	Root                 []byte
	Scope                content.Scope
	Node, Page, Manifest *frameWire
}

type frameWire struct {
	_    struct{} `cbor:",toarray"`
	Link content.CID
	Location
}

// wire returns what can't be told from the rest of h.
func (h Head) wire() headWire {
	short := func(e Extent) *frameWire {
		if e == (Extent{}) {
			return nil
		}
		tail, _ := strings.CutPrefix(string(e.Pack), h.Scope.String()+"/")
		e.Pack = ID(tail)
		return &frameWire{Link: e.CID, Location: e.Location}
	}
	w := headWire{Magic: headMagic, Scope: h.Scope, Node: short(h.Node), Page: short(h.Page), Manifest: short(h.Manifest)}
	if w.Node != nil {
		w.Node.Link, w.Page.Pack, w.Page.Offset = content.CID{}, "", 0
		if h.Manifest.Pack == h.Node.Pack {
			w.Manifest.Pack = ""
		}
	}
	return w
}

// head completes what wire left out. It checks the frames alone.
func (w headWire) head(root content.Root) (Head, error) {
	h := Head{Root: root, Scope: w.Scope}
	if w.Node != nil && w.Page != nil {
		w.Node.Link = root.Map
		w.Node.Pack = w.packID(w.Node.Pack)
		w.Page.Pack, w.Page.Offset = w.Node.Pack, w.Node.End()
	}
	switch {
	case w.Manifest != nil && w.Manifest.Pack != "":
		w.Manifest.Pack = w.packID(w.Manifest.Pack)
	case w.Manifest != nil && w.Node != nil:
		w.Manifest.Pack = w.Node.Pack
	}
	for f, e := range map[*frameWire]*Extent{w.Node: &h.Node, w.Page: &h.Page, w.Manifest: &h.Manifest} {
		if f == nil {
			continue
		}
		*e = Extent{f.Link, f.Location}
		if _, err := ParseID(string(e.Pack)); err != nil || e.CID.IsHole() {
			return Head{}, fmt.Errorf("%w: a frame of object %s in pack %.200q", content.ErrCorrupt, e.CID, e.Pack)
		}
		if err := e.Check(); err != nil {
			return Head{}, err
		}
	}
	return h, nil
}

func (w headWire) packID(id ID) ID {
	if strings.Contains(string(id), "/") {
		return id
	}
	return ID(w.Scope.String() + "/" + string(id))
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
	w := h.wire()
	w.Root = root.Bytes()
	b, err := c.Marshal(w)
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
		return Head{}, fmt.Errorf("head: %w: magic %.20q, want %q", otherMagic(w.Magic, headMagic), w.Magic, headMagic)
	}
	root, err := content.DecodeRoot(c, w.Root)
	if err != nil {
		return Head{}, fmt.Errorf("head: %w", err)
	}
	h, err := w.head(root)
	if err == nil {
		err = h.Validate()
	}
	if err != nil {
		return Head{}, fmt.Errorf("head: %w: %w", content.ErrCorrupt, err)
	}
	if again, err := h.Encode(c); err != nil || !bytes.Equal(again, b) {
		return Head{}, fmt.Errorf("head: %w: not the canonical encoding", content.ErrCorrupt)
	}
	return h, nil
}

// otherMagic is ErrUnknown for the magic of another version.
func otherMagic(got, want string) error {
	if name, _, ok := strings.Cut(want, "/"); ok && strings.HasPrefix(got, name+"/") {
		return content.ErrUnknown
	}
	return content.ErrCorrupt
}

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
	// Lineage are the roots that this one came from, nearest first, at most content.LineageMax.
	Lineage []content.CID `cbor:"lineage"`
}

// PackRefs is what a root needs of one pack.
type PackRefs struct {
	_  struct{} `cbor:",toarray"`
	ID ID
	// Refs counts the places of the map whose chunk or node lies in the pack, Bytes the frames there, a
	// node's with its page's. A place counts though another names the same object: so whoever knows what a
	// root drops and gains keeps both up without reading what stays. A pack that holds the root or the
	// manifest alone has neither.
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

// Keys are those of all packs that it names.
func (m Manifest) Keys() []string {
	keys := make([]string, len(m.Packs))
	for i, p := range m.Packs {
		keys[i] = p.ID.Key()
	}
	return keys
}

// Has reports whether it names the pack of a key.
func (m Manifest) Has(key string) bool {
	id, err := ParseKey(key)
	_, has := m.Pack(id)
	return err == nil && has
}

// CheckOf fails with ErrCorrupt unless the manifest is of a head's root: any other may be named there, and says nothing of
// what the root needs.
func (m Manifest) CheckOf(c *content.Codec, h Head) error {
	root, err := h.Root.Encode(c)
	if err == nil && (m.Root != root.CID() || m.Page != h.Page.CID) {
		err = fmt.Errorf("manifest: %w: it is of root %s, not of %s", content.ErrCorrupt, m.Root, root.CID())
	}
	return err
}

// Pack returns what the root needs of a pack; false for nothing.
func (m Manifest) Pack(id ID) (PackRefs, bool) {
	i, ok := slices.BinarySearchFunc(m.Packs, id, func(p PackRefs, id ID) int { return cmp.Compare(p.ID, id) })
	if !ok {
		return PackRefs{}, false
	}
	return m.Packs[i], true
}

// DecodeManifest reads an encoded manifest; anything but the one encoding of a valid one is ErrCorrupt.
func DecodeManifest(c *content.Codec, b []byte) (Manifest, error) {
	if len(b) > ManifestSizeMax {
		return Manifest{}, fmt.Errorf("manifest of %d bytes: %w: limit is %d", len(b), content.ErrCorrupt, ManifestSizeMax)
	}
	var w manifestWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	if w.Magic != manifestMagic {
		return Manifest{}, fmt.Errorf("manifest: %w: magic %.20q, want %q", otherMagic(w.Magic, manifestMagic), w.Magic, manifestMagic)
	}
	if w.Root.IsHole() || len(w.Lineage) > content.LineageMax || slices.Contains(w.Lineage, content.CID{}) {
		return Manifest{}, fmt.Errorf("manifest: %w: root %s, %d ancestors", content.ErrCorrupt, w.Root, len(w.Lineage))
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
