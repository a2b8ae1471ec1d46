package catalog

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	instanceMagic = "grange-instance/1"
	// SpecMax bounds how an instance is run, in bytes: the rest of a record is for its head and its signatures.
	SpecMax = 1536
)

// InstanceID names an instance through deletions and creations of its name.
type InstanceID [16]byte

// Instance is the body of an instance's record: who may run it, how, and what it had when it was last put away. What its
// workload has written since is with its holder alone.
//
// Encoded as a dag-cbor map: magic "grange-instance/1", head (the bytes of pack.Head, absent where nothing was put away),
// and the other fields by the names below.
type Instance struct {
	ID InstanceID `cbor:"id"`
	// Epoch is the number under which its holder runs it; it rises with each that takes it. Incarnation is the random number
	// of the start of the process that does.
	Epoch       uint64          `cbor:"epoch"`
	Incarnation uint64          `cbor:"incarnation"`
	Holder      trust.PublicKey `cbor:"holder"`
	State       VolumeState     `cbor:"state"`
	// From is what it was provisioned from first, as tree:NAME or image:NAME; "" for nothing.
	From string `cbor:"from"`
	// Disk is the volume of a virtual machine, by the name of the instance; zero for none.
	Disk content.VolumeID `cbor:"disk"`
	// Spec is how it is run, as the node's hub encodes it.
	Spec []byte `cbor:"spec"`
	// Head is the tree that was put away last, and Lineage are those before, the newest first.
	Head    *pack.Head    `cbor:"-"`
	Lineage []content.CID `cbor:"lineage"`
	// Away names the head of what it has put away at a target of its own, see package images; then Head is nil.
	Away content.CID `cbor:"away"`
	// Saved is when that was, in milliseconds since 1970; 0 for never.
	Saved int64 `cbor:"saved"`
}

type instanceWire struct {
	Magic   string `cbor:"magic"`
	Encoded []byte `cbor:"head,omitempty"`
	Instance
}

// SavedAt is when what it has was put away last; zero for never.
func (i Instance) SavedAt() time.Time { return fromMillis(i.Saved) }

// Encode returns the body's canonical CBOR. What no record of an instance may have is ErrInvalid.
func (i Instance) Encode(c *content.Codec) ([]byte, error) {
	w := instanceWire{Magic: instanceMagic, Instance: i}
	w.Lineage = append([]content.CID{}, i.Lineage[:min(len(i.Lineage), content.LineageMax)]...)
	if i.Head != nil {
		var err error
		if w.Encoded, err = i.Head.Encode(c); err != nil {
			return nil, fmt.Errorf("instance: %w", err)
		}
	}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("instance: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(w)
}

// DecodeInstance reads an encoded body; anything else is ErrCorrupt.
func DecodeInstance(c *content.Codec, b []byte) (Instance, error) {
	var w instanceWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Instance{}, fmt.Errorf("instance: %w", err)
	}
	if len(w.Encoded) > 0 {
		head, err := pack.DecodeHead(c, w.Encoded)
		if err != nil {
			return Instance{}, fmt.Errorf("instance: %w", err)
		}
		w.Head = &head
	}
	if err := w.check(); err != nil {
		return Instance{}, fmt.Errorf("instance: %w: %w", content.ErrCorrupt, err)
	}
	return w.Instance, nil
}

func (w instanceWire) check() error {
	switch {
	case w.Magic != instanceMagic:
		return fmt.Errorf("magic %.20q", w.Magic)
	case w.ID == InstanceID{} || w.Epoch == 0 || w.Epoch > VersionMax || w.Holder == trust.PublicKey{}:
		return errors.New("no ID, epoch or holder")
	case w.State != Attached && w.State != Released:
		return fmt.Errorf("state %.20q", w.State)
	case len(w.Spec) == 0 || len(w.Spec) > SpecMax || len(w.From) > sourceMax+len(content.KindTree)+1 || len(w.Lineage) > content.LineageMax || w.Saved < 0:
		return fmt.Errorf("%d bytes say how it is run, of at most %d, %d from what, and %d ancestors", len(w.Spec), SpecMax, len(w.From), len(w.Lineage))
	case w.Head != nil && !w.Away.IsHole():
		return errors.New("it has something in two places")
	case w.Head != nil && w.Head.Root.Kind != content.RootTree:
		return errors.New("what it has is no tree")
	case slices.Contains(w.Lineage, content.CID{}):
		return errors.New("an ancestor is a hole")
	}
	return nil
}
