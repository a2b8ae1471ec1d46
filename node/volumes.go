package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// registry keeps the records of volumes.
type registry struct {
	names *records.Names
	codec *content.Codec
	farm  string
}

// Volume implements volumes.Registry.
func (x registry) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.names.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

// SureVolume implements volumes.Registry.
func (x registry) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.names.Lookup(ctx, content.KindVolume, name, true)
	if (err == nil || k.Tombstone) && !x.names.Sure(k) {
		return catalog.Record{}, fmt.Errorf("%w: one member alone says what it is", content.ErrUnavailable)
	}
	return k.Record, err
}

// CommitVolume implements volumes.Registry.
func (x registry) CommitVolume(ctx context.Context, name string, body catalog.Volume) (catalog.Record, error) {
	if body.Head != nil { // what a volume is made from may be for others too, the volume is its farm's
		head := *body.Head
		head.Scope = content.Farm(x.farm)
		body.Head = &head
	}
	b, err := body.Encode(x.codec)
	if err != nil {
		return catalog.Record{}, err
	}
	return x.names.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: name, Farm: x.farm, Body: b})
}

// DeleteVolume implements volumes.Registry.
func (x registry) DeleteVolume(ctx context.Context, base catalog.Record) error {
	_, err := x.names.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
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
