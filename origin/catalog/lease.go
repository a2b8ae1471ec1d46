package catalog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const leaseMagic = "grange-lease/1"

// Lease is the body of a lease's record: content that a member reads, for a volume attached read-only, a tree that is
// mounted, or an instance that started lazily. It stays at the origin while the lease does, whatever becomes of the names
// that it had. The member deletes the record when it reads no more; that of a member that is gone for good ends with its
// certificate.
//
// Encoded as a dag-cbor map: magic "grange-lease/1", head (the bytes of pack.Head), segments as the journal of a Volume of
// the zero ID has them, holder and what.
type Lease struct {
	Folded `cbor:"-"`
	// Size of the disk in bytes; of a tree, that of its root.
	Size   int64           `cbor:"size"`
	Holder trust.PublicKey `cbor:"holder"`
	// What says for people what it is for, as "volume web1".
	What string `cbor:"what"`
}

type leaseWire struct {
	Magic   string `cbor:"magic"`
	Encoded []byte `cbor:"head,omitempty"`
	Journal []byte `cbor:"journal"`
	Lease
}

// LeaseName is the name of a member's lease of something: all of a member's begin alike.
func LeaseName(holder trust.PublicKey, what content.CID) string {
	return fmt.Sprintf("%s%x", LeaseNames(holder), what[:16])
}

// LeaseNames is what the names of all of a member's leases begin with.
func LeaseNames(holder trust.PublicKey) string { return fmt.Sprintf("%x-", holder[:16]) }

// Encode returns the body's canonical CBOR. What no lease may have is ErrInvalid.
func (l Lease) Encode(c *content.Codec) ([]byte, error) {
	l.What = strings.ToValidUTF8(l.What[:min(len(l.What), sourceMax)], "") // a folder may be called anything
	w := leaseWire{Magic: leaseMagic, Lease: l}
	err := l.check()
	if err == nil && l.Head != nil {
		w.Encoded, err = l.Head.Encode(c)
	}
	if err == nil {
		w.Journal, err = l.encodeJournal(content.VolumeID{})
	}
	if err != nil {
		return nil, fmt.Errorf("lease: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(w)
}

// DecodeLease reads an encoded body; anything but the one encoding of a valid one is ErrCorrupt.
func DecodeLease(c *content.Codec, b []byte) (Lease, error) {
	var w leaseWire
	err := c.Unmarshal(b, &w)
	if err == nil && w.Magic != leaseMagic {
		err = fmt.Errorf("magic %.20q", w.Magic)
	}
	l := w.Lease
	if err == nil {
		l.Folded, err = decodeFolded(c, content.VolumeID{}, w.Encoded, nil, w.Journal)
	}
	if err == nil {
		err = isEncodingOf(l.Encode, c, b)
	}
	if err != nil {
		return Lease{}, fmt.Errorf("lease: %w: %w", content.ErrCorrupt, err)
	}
	return l, nil
}

func (l Lease) check() error {
	switch {
	case l.Holder == trust.PublicKey{} || l.Size < 0:
		return fmt.Errorf("holder %s, size %d", l.Holder, l.Size)
	case len(l.Lineage) > 0 || len(l.Segments) > SegmentsMax:
		return fmt.Errorf("%d ancestors and %d segments", len(l.Lineage), len(l.Segments))
	case l.Head == nil && len(l.Segments) == 0:
		return errors.New("it is of nothing")
	}
	return nil
}
