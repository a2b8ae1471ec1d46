package node

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// registry is the volumes.Registry of this node.
type registry struct {
	names *records.Names
	farm  string
}

// listPage is how many records are taken at once where all are looked through: what the
// origin lists is asked for anew for each page, 1,000 names at a time.
const listPage = 10_000

func (x registry) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.names.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

func (x registry) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.names.Lookup(ctx, content.KindVolume, name, true)
	if (err == nil || k.Tombstone) && !x.names.Sure(k) {
		return catalog.Record{}, fmt.Errorf("%w: one member alone says what it is", content.ErrUnavailable)
	}
	return k.Record, err
}

func (x registry) Snapshot(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.names.Lookup(ctx, content.KindSnapshot, name, true)
	return k.Record, err
}

func (x registry) Snapshots(ctx context.Context, volume string) []catalog.Record {
	begin := ""
	if volume != "" {
		begin = volume + "@"
	}
	return x.list(ctx, content.KindSnapshot, begin)
}

func (x registry) Volumes(ctx context.Context) []catalog.Record {
	return x.list(ctx, content.KindVolume, "")
}

func (x registry) list(ctx context.Context, kind content.Kind, begin string) []catalog.Record {
	return listed(ctx, x.names, kind, begin)
}

// listed returns the records whose names begin with a prefix.
func listed(ctx context.Context, names *records.Names, kind content.Kind, begin string) (out []catalog.Record) {
	after := ""
	for more := true; more; {
		var page []records.Known
		page, more = names.List(ctx, kind, begin, after, listPage)
		for _, k := range page {
			out, after = append(out, k.Record), k.Name
		}
		more = more && len(page) > 0
	}
	return out
}

func (x registry) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Farm = x.farm
	return x.names.Commit(ctx, ch)
}

func (x registry) Delete(ctx context.Context, base catalog.Record) error {
	_, err := x.names.Commit(ctx, catalog.Change{Kind: base.Kind, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}

// isAway says whether a node is neither in the farm nor connected, nor answers.
func (n *Node) isAway(ctx context.Context, key trust.PublicKey) bool {
	switch n.Membership.Who(key).State {
	case membership.StateRevoked:
		return true
	case membership.StateAway:
		id := identity.PeerID(key)
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return n.swarm.Connect(ctx, peer.AddrInfo{ID: id}) != nil && (n.farm == nil || !slices.Contains(n.farm.Live(), id))
	}
	return false
}

// callMember asks a member about volumes.
func (n *Node) callMember(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error) {
	return n.exchange.Call(ctx, identity.PeerID(to), method, body)
}

// findMember returns a node of this farm by what people call it.
func (n *Node) findMember(ctx context.Context, who string) (trust.PublicKey, string, error) {
	m, err := n.Membership.Find(ctx, who)
	if err == nil && m.Farm != n.Farm() {
		err = fmt.Errorf("%w: %s: a volume stays in its farm, which is %s", content.ErrForbidden, m, n.Farm())
	}
	return m.Key, m.String(), err
}

func (n *Node) volumesDir() string { return filepath.Join(n.cfg.Dir, "volumes") }

func (n *Node) openVolumes(ctx context.Context) (err error) {
	n.Volumes, err = volumes.New(ctx, volumes.Config{
		Dir: n.volumesDir(), NBD: n.cfg.NBD, UBLK: n.cfg.UBLK, Self: n.identity.Public(), NodeID: n.swarm.ID().String(), Farm: n.Farm(),
		Who: func(k trust.PublicKey) string { return n.Membership.Who(k).String() }, Called: func(k trust.PublicKey) string { return n.Membership.Who(k).Name }, Away: n.isAway, Call: n.callMember, Member: n.findMember, Returned: n.returned.Load, Library: n.Images, Registry: registry{n.Names, n.Farm()}, Holders: n.farmHolders(), Origin: n.origin.writable, Signer: n.Membership.Signer(), Keep: n.Images.Keep(content.Farm(n.Farm())), Publish: n.Images.Publish, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}
