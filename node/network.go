package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/oci"
	"github.com/grangemesh/grange/node/profile"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// openNetwork builds the swarm, the fetcher and the exchange, each of which knows
// the others, then opens the addresses; nobody is answered before Run.
func (n *Node) openNetwork(context.Context) (err error) {
	n.peers = identity.New(n.verifier, n.cfg.Now)
	cfg := swarm.Config{
		Identity: n.identity, Mesh: n.verifier.Mesh(), Listen: n.cfg.Listen, Announce: n.cfg.Announce, Bootstrap: slices.Concat(n.cfg.Bootstrap, n.Membership.State().Bootstrap),
		PeersFile: filepath.Join(n.cfg.Dir, peersFile), Log: n.cfg.Log,
		Ledger: n.peers,
		Prove:  func(ctx context.Context, id peer.ID) bool { _, err := n.exchange.Meet(ctx, id); return err == nil },
	}
	if n.allowance != nil {
		cfg.Carried, cfg.Relays = n.carried, n.allowance.Relays
	}
	if n.swarm, err = swarm.New(cfg); err != nil {
		if err := n.unlessAwaited("its addresses", err); err != nil {
			return err
		}
		cfg.Listen, cfg.Bootstrap = nil, nil
		n.swarm, err = swarm.New(cfg)
	}
	if err != nil {
		return err
	}
	n.undo = append(n.undo, n.swarm.Close)
	n.origin = newOrigin(n.cfg, n.Membership, n.recall, func() { n.fetch.OriginBack(); n.returned.Add(1) })
	n.fetch, err = fetch.New(fetch.Config{
		Cache: n.cache, Members: neighbours{n}, Swarm: n.swarm, Origin: n.origin.reader, Self: n.swarm.ID(),
		Identity: n.Membership.Identity(), Verifier: n.verifier, Announce: n.Membership.Announce,
		Introduce: n.introduced, Serves: n.serves, Served: n.served, HoldsOnly: n.allowance != nil, NoOrigin: n.cfg.noOrigin, IOTimeout: n.cfg.IOTimeout, Spans: n.cfg.Spans, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	if err := n.openHeld(); err != nil {
		return err
	}
	n.exchange, err = exchange.New(exchange.Config{
		Host: n.swarm.Host(), Ledger: n.peers, Chain: n.Membership.State().Chain, Server: n.fetch, Answerer: answerer{n}, Holder: n.journals(),
		Allow: n.Allow, OnViolation: n.violated, OnProved: n.swarm.Welcome, OnLost: n.swarm.Dismiss, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.fetch.Connect(n.exchange)
	n.Membership.Connect(reach{n.exchange, n.swarm})
	return n.unlessAwaited("an address to listen on", n.swarm.Listen())
}

func (n *Node) openFarm(context.Context) error {
	if n.cfg.FarmBind == "" {
		return nil
	}
	keys := n.Membership.Gossip()
	err := n.checkFarm()
	var f *farm.Farm
	if err == nil {
		f, err = farm.New(farm.Config{
			Signer: n.signer, Verifier: n.verifier, Bind: n.cfg.FarmBind, Join: n.cfg.FarmJoin,
			Key: keys[0], Addrs: n.swarm.Info().Addrs, Name: n.nameOf, Now: n.cfg.Now, Log: n.cfg.Log,
		})
	}
	if err == nil {
		err = f.Start()
	}
	if n.farmless = err; err != nil {
		return n.unlessAwaited("its farm", err)
	}
	n.farm = f
	n.undo = append(n.undo, func() error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return f.Run(ctx)
	})
	return f.Rotate(keys[len(keys)-1])
}

// neighbours tells the fetcher who is in the farm.
type neighbours struct{ n *Node }

func (x neighbours) Live() []peer.ID {
	if x.n.farm == nil {
		return []peer.ID{x.n.swarm.ID()}
	}
	return x.n.farm.Live()
}

// violationBan is how long a stranger that broke the protocol is shut out: it may
// be a member of another version, whose operator needs time, and not a day.
const violationBan = time.Hour

// violated deals with a peer that broke the protocol. One of this farm is only
// complained of: its operator is ours.
func (n *Node) violated(id peer.ID, err error) {
	who, ok := n.peers.Of(id)
	near := ok && who.Role.IsMember() && who.Farm == n.Farm()
	n.cfg.Log.Warn("a peer broke the protocol", "peer", id, "of_this_farm", near, "err", err)
	if !near {
		n.swarm.Ban(id, violationBan, "broke the protocol: "+content.Line(err))
	}
}

// followFarm tells the swarm where the farm's members are to be found, until ctx ends.
func (n *Node) followFarm(ctx context.Context) error {
	var before []peer.ID
	met := false // any other, since the start, which is no return
	for {
		select {
		case <-n.farm.Changed():
		case <-ctx.Done():
			return nil
		}
		live := n.farm.Live()
		for _, id := range before {
			if !slices.Contains(live, id) {
				n.swarm.Forget(id)
			}
		}
		if met && len(before) == 1 && len(live) > 1 {
			n.returned.Add(1)
		}
		before, met = live, met || len(live) > 1
		n.swarm.HoldOutside(slices.Contains(farm.Outside(n.farm.Members()), n.swarm.ID()))
		for _, m := range n.farm.Members() {
			if m.ID != n.swarm.ID() {
				n.swarm.Learn(peer.AddrInfo{ID: m.ID, Addrs: m.Addrs})
			}
		}
	}
}

// followPlaces says where this node is reached whenever that changes, until ctx ends.
func (n *Node) followPlaces(ctx context.Context) error {
	for {
		select {
		case <-n.swarm.Moved():
		case <-ctx.Done():
			return nil
		}
		info := n.swarm.Info()
		err := n.Membership.Moved(swarm.Texts(info))
		if n.farm != nil {
			err = errors.Join(err, n.farm.Tell(info.Addrs))
		}
		if err != nil {
			n.cfg.Log.Debug("this node is reached at other addresses", "err", err)
		}
	}
}

// answerer answers the calls of other members.
type answerer struct{ n *Node }

func (x answerer) Call(ctx context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	switch method {
	case resolveMethod: // a record that this node knows, as far as the asker may read it
		return membership.Answer(x.n.codec, body, func(q records.Question) (records.Answer, error) { return x.n.Names.Answer(ctx, from.Identity, q) })
	case commitMethod: // a record of a member that can write to no origin
		if from.Identity.Role == "" {
			break
		}
		return membership.Answer(x.n.codec, body, func(s records.Submission) (records.Answer, error) { return x.n.Names.CommitFor(ctx, from.Identity, s) })
	case matchMethod: // names that a member follows
		return membership.Answer(x.n.codec, body, func(q []follow.Pattern) ([]images.Match, error) { return x.n.Images.Matches(ctx, from.Identity, q) })
	case images.WarmMethod:
		return membership.Answer(x.n.codec, body, func(q images.WarmRequest) (images.WarmAnswer, error) {
			return x.n.Images.AnswerWarm(ctx, from.Identity, q)
		})
	case profile.Method:
		if x.n.Profiles == nil {
			break
		}
		return membership.Answer(x.n.codec, body, func(q profile.Question) (profile.Answer, error) { return x.n.Profiles.Answer(from.Identity, q) })
	case twinMethod:
		if b, err := x.n.answerTwin(body); err == nil {
			return b, nil
		}
	case pingMethod:
		if from.Identity.Role != "" { // a stranger learns nothing
			return nil, nil
		}
	}
	if x.n.Volumes != nil && strings.HasPrefix(method, volumes.CallPrefix) {
		return x.n.Volumes.Answer(ctx, from.Identity, method, body)
	}
	if strings.HasPrefix(method, oci.CallPrefix) {
		return x.n.Door.Answer(ctx, from, method, body)
	}
	return x.n.Membership.Call(ctx, from, method, body)
}

func (n *Node) learn(k records.Known) {
	if k.Head == nil {
		return
	}
	if _, err := n.fetch.Learn(images.RootOf(k)); err != nil {
		n.cfg.Log.Warn("a root can't be learned", "name", k.Name, "err", err)
	}
}

// introduced reads a record that a member sent because it is going to ask for the
// root in it.
func (n *Node) introduced(envelope []byte) (fetch.Root, error) {
	k, err := n.Names.Introduced(envelope)
	if err != nil {
		return fetch.Root{}, err
	}
	return images.RootOf(k), nil
}

// recall returns what is known of a record for the catalog, which is opened before the
// names are.
func (n *Node) recall(kind content.Kind, name string) (catalog.Record, bool) {
	if n.Names == nil {
		return catalog.Record{}, false
	}
	return n.Names.Recall(kind, name)
}

// pingMethod asks a member for nothing but an answer.
const pingMethod = "ping"

// Ping is how another member is reached.
type Ping struct {
	ID   string    `json:"id"`
	Name string    `json:"name,omitempty" doc:"what the member calls itself, which proves nothing"`
	Farm string    `json:"farm,omitempty" doc:"absent for a seed, which belongs to none"`
	Way  swarm.Way `json:"way" enum:"LAN,direct,relayed" doc:"what the connection with it leads through: where that is a relay, holes had the time to be punched"`
	Path string    `json:"path" doc:"the other end of the connection, or the relay's"`
	// RoundTrips has one for each answer, in the order asked.
	RoundTrips []float64 `json:"round_trip_seconds"`
}

// Ping connects with a member, if there is no connection, has it answer so many times,
// and says by what way. who is its peer ID, its name, what either begins with, or a full
// multiaddr. One that can't be reached, or doesn't answer, is content.ErrUnavailable; who
// answers and is no member content.ErrForbidden.
func (n *Node) Ping(ctx context.Context, who string, times int) (p Ping, err error) {
	info, err := n.whereIs(ctx, who)
	if err != nil {
		return p, err
	}
	if info.ID == n.swarm.ID() {
		return p, fmt.Errorf("ping %s: %w: it is this node itself; name another member", who, content.ErrInvalid)
	}
	path, err := n.swarm.Reach(ctx, info)
	var met trust.Identity
	if err == nil {
		met, err = n.exchange.Meet(ctx, info.ID)
	}
	if err != nil {
		return p, fmt.Errorf("ping %s: %w", who, err)
	}
	p = Ping{ID: info.ID.String(), Name: n.Membership.Who(met.Key).Name, Farm: met.Farm}
	for range times {
		begun := time.Now()
		if _, err := n.exchange.Call(ctx, info.ID, pingMethod, nil); err != nil {
			return p, fmt.Errorf("ping %s: connected at %s (%s), but %d of %d answers came: %w", who, path.Address, path.Way, len(p.RoundTrips), times, err)
		}
		p.RoundTrips = append(p.RoundTrips, time.Since(begun).Seconds())
	}
	if now := n.swarm.Path(info.ID); now.Way != "" { // a better one may have come meanwhile
		path = now
	}
	p.Way, p.Path = path.Way, path.Address
	return p, nil
}

// whereIs returns whom a text names, with addresses if it is one.
func (n *Node) whereIs(ctx context.Context, who string) (peer.AddrInfo, error) {
	if strings.HasPrefix(who, "/") {
		return swarm.ParseAddr(who)
	}
	m, err := n.Membership.Find(ctx, who)
	return peer.AddrInfo{ID: identity.PeerID(m.Key)}, err
}
