package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// The calls that members make to each other, beside requests for content.
const (
	farmMethod    = "farm"
	resolveMethod = "resolve"
	commitMethod  = "commit"
	// callTimeout bounds one call to a member.
	callTimeout = 3 * time.Second
	// membersAsked bounds the members that one question goes to.
	membersAsked = 6
)

// neighbours tells the fetcher who is in the farm.
type neighbours struct{ n *Node }

// Live implements fetch.Members.
func (x neighbours) Live() []peer.ID {
	if x.n.farm == nil {
		return []peer.ID{x.n.swarm.ID()}
	}
	members := x.n.farm.Members()
	out := make([]peer.ID, 0, len(members))
	for _, m := range members {
		if id, err := peer.Decode(m.Node); err == nil {
			out = append(out, id)
		}
	}
	return out
}

// violationBan is how long a stranger that broke the protocol is shut out: it may
// be a member of another version, whose operator needs time, and not a day.
const violationBan = time.Hour

// violated deals with a peer that broke the protocol. One of this farm is only
// complained of: its operator is ours.
func (n *Node) violated(id peer.ID, err error) {
	near := slices.Contains(neighbours{n}.Live(), id)
	n.cfg.Log.Warn("a peer broke the protocol", "peer", id, "of_this_farm", near, "err", err)
	if !near {
		n.swarm.Ban(id, violationBan)
	}
}

// followFarm tells the swarm where the farm's members are to be found.
func (n *Node) followFarm(ctx context.Context) {
	changed := n.farm.Watch(ctx)
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		for _, m := range n.farm.Members() {
			for _, a := range m.Addrs {
				if info, err := swarm.ParseAddr(a); err == nil && info.ID != n.swarm.ID() {
					n.swarm.Learn(info)
				}
			}
		}
	}
}

// answerer answers the calls of other members.
type answerer struct{ n *Node }

type resolveRequest struct {
	Kind content.Kind `cbor:"kind"`
	Name string       `cbor:"name"`
}

type commitRequest struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
}

// Call implements exchange.Answerer.
func (x answerer) Call(ctx context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	switch method {
	case farmMethod:
		return []byte(x.n.Farm()), nil
	case redeemMethod:
		return x.n.redeem(body)
	case resolveMethod:
		return x.resolve(ctx, from, body)
	case commitMethod:
		return x.commit(ctx, from, body)
	}
	return nil, fmt.Errorf("call %.20q: %w", method, content.ErrNotFound)
}

// resolve answers with a record that this node holds, and its word on when it saw
// it at the origin. What the asker may not read is absent.
func (x answerer) resolve(_ context.Context, from exchange.Peer, body []byte) ([]byte, error) {
	var req resolveRequest
	if err := x.n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	k, ok := x.n.Names.Held(req.Kind, req.Name)
	if !ok || !from.Identity.MayRead(k.scope) && !k.Tombstone {
		return nil, fmt.Errorf("%s %.140q: %w", req.Kind, req.Name, content.ErrNotFound)
	}
	statement, err := x.n.signer.State(trust.Statement{Kind: k.Kind, Name: k.Name, Version: k.Version, SeenAt: k.SeenAt})
	if err != nil {
		return nil, err
	}
	return x.n.codec.Marshal(heard{k.Sealed, statement, k.ETag})
}

// commit writes a record for a member without an origin: its own record, as the
// signature says, which only it could have made.
func (x answerer) commit(ctx context.Context, from exchange.Peer, body []byte) ([]byte, error) {
	var req commitRequest
	if err := x.n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	e, err := x.n.verifier.Open(req.Sealed, x.n.cfg.Now())
	if err != nil {
		return nil, err
	}
	if e.Signer.Key != from.Identity.Key {
		return nil, fmt.Errorf("commit %s %q: %w: signed by another than the asker", e.Kind, e.Name, content.ErrForbidden)
	}
	c := x.n.origin.records()
	if c == nil {
		return nil, fmt.Errorf("commit %s %q: %w: no origin here either", e.Kind, e.Name, content.ErrUnavailable)
	}
	r, err := c.Submit(ctx, req.Sealed, req.ETag)
	if err != nil {
		return nil, err
	}
	if err := x.n.Names.Confirmed(r); err != nil {
		return nil, err
	}
	return x.n.codec.Marshal(heard{Sealed: r.Sealed, ETag: r.ETag})
}

// ask calls up to limit members, those of the farm first, and returns the
// answers in the order in which they came. Members outside come after, as many
// as are wanted still.
func (n *Node) ask(ctx context.Context, method string, body []byte, limit int) [][]byte {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	near := neighbours{n}.Live()
	var ids []peer.ID
	for _, p := range n.swarm.Peers() {
		if !slices.Contains(near, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	for _, id := range near {
		if id != n.swarm.ID() {
			ids = append([]peer.ID{id}, ids...)
		}
	}
	ids = ids[:min(len(ids), membersAsked)]
	answers := make(chan []byte, len(ids))
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if b, err := n.exchange.Call(ctx, id, method, body); err == nil {
				answers <- b
			}
		})
	}
	go func() { wg.Wait(); close(answers) }()
	var out [][]byte
	for b := range answers {
		if out = append(out, b); len(out) == limit {
			return out
		}
	}
	return out
}

// askRecord asks members for a record.
func (n *Node) askRecord(ctx context.Context, kind content.Kind, name string, limit int) []heard {
	body, err := n.codec.Marshal(resolveRequest{kind, name})
	if err != nil {
		return nil
	}
	var out []heard
	for _, b := range n.ask(ctx, resolveMethod, body, limit) {
		var h heard
		if n.codec.Unmarshal(b, &h) == nil {
			out = append(out, h)
		}
	}
	return out
}

// learn makes the root of a record readable.
func (n *Node) learn(k known) {
	if k.head == nil {
		return
	}
	if _, err := n.fetch.Learn(rootOf(n.codec, k)); err != nil {
		n.cfg.Log.Warn("a root can't be learned", "name", k.Name, "err", err)
	}
}

func rootOf(c *content.Codec, k known) fetch.Root {
	r := fetch.Root{Head: *k.head, Envelope: k.Sealed}
	if body, err := catalog.DecodeImage(c, k.Body); err == nil {
		r.Lineage = body.Lineage
	}
	return r
}

// introduced reads a record that a member sent because it is going to ask for the
// root in it.
func (n *Node) introduced(envelope []byte) (fetch.Root, error) {
	e, err := n.verifier.Open(envelope, n.cfg.Now())
	if err != nil {
		return fetch.Root{}, err
	}
	k, err := n.Names.describe(catalog.Record{Envelope: e, Sealed: envelope, SeenAt: e.SignedAt})
	if err != nil {
		return fetch.Root{}, err
	}
	if k.head == nil {
		return fetch.Root{}, fmt.Errorf("introduce %s %q: %w: it has no root", e.Kind, e.Name, content.ErrInvalid)
	}
	return rootOf(n.codec, k), nil
}

// commit writes a record, by this node's origin or through a member.
func (n *Node) commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	if c := n.origin.records(); c != nil {
		r, err := c.Commit(ctx, ch)
		if err == nil {
			return r, n.Names.Confirmed(r)
		}
		n.origin.lost(err)
		return r, err
	}
	return n.commitThroughMember(ctx, ch)
}

func (n *Node) commitThroughMember(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	version, etag := uint64(1), ""
	base := ch.Base
	if k, held := n.Names.Held(ch.Kind, ch.Name); base == nil && held && k.Tombstone { // a deleted name is free
		base = &k.Record
	}
	if base != nil {
		version, etag = base.Version+1, base.ETag
	}
	e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: version, SignedAt: n.cfg.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body, Commit: trust.NewCommit()}
	sealed, err := n.signer.Seal(e)
	if err != nil {
		return catalog.Record{}, err
	}
	body, err := n.codec.Marshal(commitRequest{sealed, etag})
	if err != nil {
		return catalog.Record{}, err
	}
	for _, b := range n.ask(ctx, commitMethod, body, 1) {
		var h heard
		if n.codec.Unmarshal(b, &h) == nil {
			if r, err := n.Names.heard(ch.Kind, ch.Name, h); err == nil && r.Commit == e.Commit {
				return r, n.Names.Confirmed(r)
			}
		}
	}
	_, err = n.origin.writable()
	return catalog.Record{}, fmt.Errorf("write %s %q: %w; no member that was asked could write it either", ch.Kind, ch.Name, errors.Join(content.ErrUnavailable, err))
}

// registry keeps the records of volumes.
type registry struct{ n *Node }

// Volume implements volumes.Registry.
func (x registry) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.n.Names.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

// CommitVolume implements volumes.Registry.
func (x registry) CommitVolume(ctx context.Context, name string, body catalog.Volume, base *catalog.Record) (catalog.Record, error) {
	b, err := body.Encode(x.n.codec)
	if err != nil {
		return catalog.Record{}, err
	}
	return x.n.commit(ctx, catalog.Change{Kind: content.KindVolume, Name: name, Farm: x.n.Farm(), Body: b, Base: base})
}

// DeleteVolume implements volumes.Registry.
func (x registry) DeleteVolume(ctx context.Context, base catalog.Record) error {
	_, err := x.n.commit(ctx, catalog.Change{Kind: content.KindVolume, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}

// library finds what volumes begin as.
type library struct{ n *Node }

// Base implements volumes.Library.
func (x library) Base(ctx context.Context, ref content.Ref) (volumes.Base, error) {
	if ref.Kind != content.KindImage {
		return volumes.Base{}, fmt.Errorf("%s: %w: this version creates volumes from images", ref, errors.ErrUnsupported)
	}
	k, err := x.n.Names.Lookup(ctx, content.KindImage, ref.Name, true)
	if err != nil {
		return volumes.Base{}, err
	}
	r := rootOf(x.n.codec, k)
	if id, err := x.n.fetch.Learn(r); err == nil {
		x.n.fetch.Prepare(ctx, id) // the new volume's first read knows whom to ask
	}
	return volumes.Base{Head: r.Head, Lineage: r.Lineage, Envelope: r.Envelope}, nil
}

// Image implements volumes.Library.
func (x library) Image(_ context.Context, b volumes.Base) (*fetch.Image, error) {
	id, err := x.n.fetch.Learn(fetch.Root(b))
	if err != nil {
		return nil, err
	}
	return x.n.fetch.Open(id)
}

// join redeems a token with the members that it names.
func (c Config) join(ctx context.Context, identity trust.PrivateKey) (membership, error) {
	token, err := trust.ParseToken(c.Join, c.Now())
	if err != nil {
		return membership{}, fmt.Errorf("--join: %w", err)
	}
	s, err := swarm.New(swarm.Config{Identity: identity, Mesh: token.Mesh, Log: c.Log})
	if err != nil {
		return membership{}, err
	}
	defer s.Close()
	x, err := exchange.New(exchange.Config{Host: s.Host(), Verifier: trust.NewVerifier(token.Mesh), Now: c.Now, Log: c.Log})
	if err != nil {
		return membership{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	chain, err := c.redeemAt(ctx, s, x, token, identity)
	cancel()
	if err = errors.Join(err, <-ended); err != nil {
		return membership{}, fmt.Errorf("--join: %w", err)
	}
	id, err := trust.NewVerifier(token.Mesh).Verify(chain, c.Now())
	if err != nil || id.Key != identity.Public() {
		return membership{}, fmt.Errorf("--join: the certificate that came back: %w", errors.Join(content.ErrForbidden, err))
	}
	c.Log.Info("joined a mesh", "mesh", token.Mesh, "role", id.Role, "farm", id.Farm)
	return membership{Mesh: token.Mesh, Chain: chain, Secrets: token.Secrets, Origin: token.Origin, Bootstrap: token.Bootstrap}, nil
}

// redeemAt tries the token's addresses in turn, then those of the configuration.
func (c Config) redeemAt(ctx context.Context, s *swarm.Swarm, x *exchange.Exchange, token trust.Token, identity trust.PrivateKey) (trust.Chain, error) {
	codec := content.NewCodec()
	body, err := codec.Marshal(redeemRequest{token.Invite, identity.Public()})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range append(slices.Clone(token.Bootstrap), c.Bootstrap...) {
		info, err := swarm.ParseAddr(addr)
		if err == nil {
			err = s.Connect(ctx, info)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		b, err := x.Call(ctx, info.ID, redeemMethod, body)
		if errors.Is(err, content.ErrForbidden) { // it was refused, and asking elsewhere would not help
			return nil, err
		}
		var reply redeemReply
		if err == nil {
			err = codec.Unmarshal(b, &reply)
		}
		if err == nil {
			return reply.Chain, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, fmt.Errorf("%w: no member of the token answers: %w", content.ErrUnavailable, errors.Join(errs...))
}

// PeerInfo describes a member.
type PeerInfo struct {
	ID    string
	Farm  string
	Role  trust.Role
	State string
	Addrs []string
}

// SelfInfo describes this node.
type SelfInfo struct {
	ID, Mesh, Farm string
	Role           trust.Role
	Addrs          []string
	FarmAddr       string
}

// Self describes this node.
func (n *Node) Self() SelfInfo {
	id := n.member.Chain.Identity()
	s := SelfInfo{ID: n.swarm.ID().String(), Mesh: n.member.Mesh.String(), Farm: id.Farm, Role: id.Role, Addrs: n.swarm.Addrs()}
	if n.farm != nil {
		s.FarmAddr = n.farm.Address()
	}
	return s
}

// FarmPeers returns the live neighbours.
func (n *Node) FarmPeers() []PeerInfo {
	if n.farm == nil {
		return nil
	}
	aside := n.fetch.Aside()
	var out []PeerInfo
	for _, m := range n.farm.Members() {
		if m.Node == n.swarm.ID().String() {
			continue
		}
		p := PeerInfo{ID: m.Node, Farm: n.Farm(), State: "alive", Addrs: m.Addrs}
		if id, err := peer.Decode(m.Node); err == nil {
			if _, bad := aside[id]; bad {
				p.State = "set aside"
			}
		}
		out = append(out, p)
	}
	return out
}

// Peers returns the neighbours, then the other members that this node is
// connected with.
func (n *Node) Peers() []PeerInfo {
	out := n.FarmPeers()
	for _, info := range n.swarm.Peers() {
		id := info.ID.String()
		if slices.ContainsFunc(out, func(p PeerInfo) bool { return p.ID == id }) {
			continue
		}
		p := PeerInfo{ID: id, State: "connected"}
		for _, a := range info.Addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b PeerInfo) int { return strings.Compare(a.Farm+a.ID, b.Farm+b.ID) })
	return out
}

// Waiting says what the node waits for before it is ready: for neighbours and
// bootstrap members some seconds, so that its first reads find them.
func (n *Node) Waiting() []string {
	var out []string
	young := n.cfg.Now().Sub(n.started) < joinedWithin
	if young && len(n.cfg.FarmJoin) > 0 && len(n.FarmPeers()) == 0 {
		out = append(out, "a neighbour of the farm")
	}
	if young && len(n.cfg.Bootstrap)+len(n.member.Bootstrap) > 0 && len(n.swarm.Peers()) == 0 {
		out = append(out, "a member of the mesh")
	}
	if !n.Volumes.Opened() {
		out = append(out, "its volumes")
	}
	return out
}

// Bytes counts bytes by where they came from.
type Bytes struct{ Cache, Farm, Swarm, Origin int64 }

// Bytes returns where this node's bytes came from since its start.
func (n *Node) Bytes() Bytes { return BytesOf(n.fetch.Bytes()) }

// BytesOf names the counts of a fetcher or an image.
func BytesOf(b [4]int64) Bytes {
	return Bytes{b[fetch.FromCache], b[fetch.FromFarm], b[fetch.FromSwarm], b[fetch.FromOrigin]}
}

// CacheInfo describes the cache.
type CacheInfo struct {
	Chunks, Used, Quota int64
	Hits, Misses        int64
	Full                bool
}

// CacheInfo describes the cache.
func (n *Node) CacheInfo() CacheInfo {
	s := n.cache.Stats()
	return CacheInfo{Chunks: s.Chunks, Used: s.Disk, Quota: s.Quota, Full: s.Full}
}

// Evict makes room: it removes chunks that are not pinned, the least useful first,
// until they make that many bytes, and returns how many bytes it were.
func (n *Node) Evict(bytes int64) (freed int64) { return n.cache.Evict(bytes) }
