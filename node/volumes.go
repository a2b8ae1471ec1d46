package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// registry keeps the records of volumes.
type registry struct{ n *Node }

// Volume implements volumes.Registry.
func (x registry) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.n.Names.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

// SureVolume implements volumes.Registry.
func (x registry) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.n.Names.Lookup(ctx, content.KindVolume, name, true)
	if (err == nil || k.Tombstone) && !x.n.Names.Sure(k) {
		return catalog.Record{}, fmt.Errorf("%w: one member alone says what it is", content.ErrUnavailable)
	}
	return k.Record, err
}

// CommitVolume implements volumes.Registry.
func (x registry) CommitVolume(ctx context.Context, name string, body catalog.Volume) (catalog.Record, error) {
	if body.Head != nil { // what a volume is made from may be for others too, the volume is its farm's
		head := *body.Head
		head.Scope = content.Farm(x.n.Farm())
		body.Head = &head
	}
	b, err := body.Encode(x.n.codec)
	if err != nil {
		return catalog.Record{}, err
	}
	return x.n.Names.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: name, Farm: x.n.Farm(), Body: b})
}

// DeleteVolume implements volumes.Registry.
func (x registry) DeleteVolume(ctx context.Context, base catalog.Record) error {
	_, err := x.n.Names.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}

// holder names the node that holds a volume, and says whether it is away: it is neither
// in the farm nor connected, nor does it answer.
func (n *Node) holder(ctx context.Context, key trust.PublicKey) (name string, away bool) {
	who := n.Membership.Who(key)
	if who.State != membership.StateAway {
		return who.String(), who.State == membership.StateRevoked
	}
	id := identity.PeerID(key)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := n.swarm.Connect(ctx, peer.AddrInfo{ID: id}); err == nil || n.farm != nil && slices.Contains(n.farm.Live(), id) {
		who.State = membership.StateConnected
	}
	return who.String(), who.State == membership.StateAway
}

// library finds what volumes begin as.
type library struct{ n *Node }

// Base implements volumes.Library.
func (x library) Base(ctx context.Context, ref content.Ref) (fetch.Root, error) {
	if ref.Kind != content.KindImage {
		return fetch.Root{}, fmt.Errorf("%s: %w: this version creates volumes from images", ref, errors.ErrUnsupported)
	}
	k, err := x.n.Names.Lookup(ctx, content.KindImage, ref.Name, true)
	if err != nil {
		return fetch.Root{}, err
	}
	r := rootOf(k)
	if m, err := x.n.fetch.Learn(r); err == nil {
		m.Prepare(ctx) // the new volume's first read knows whom to ask
	}
	return r, nil
}

// Image implements volumes.Library. The record of the image may have ended since, so
// it is not learned from what the volume keeps of it, but from what stands now.
func (x library) Image(_ context.Context, r fetch.Root) (*fetch.Image, error) {
	if root, err := r.Head.Root.Encode(x.n.codec); err == nil {
		if k, ok := x.n.Names.OfRoot(root.CID(), r.Head.Scope); ok {
			x.n.learn(k)
		}
	}
	return x.n.fetch.Open(r)
}
