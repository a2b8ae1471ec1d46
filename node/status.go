package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// joinedWithin is how long a node with neighbours or bootstrap addresses waits
// for one of them before it calls itself ready alone. It is most of the two
// seconds that a restart may take.
const joinedWithin = 1800 * time.Millisecond

// Peer is another member.
type Peer struct {
	ID    string     `json:"id"`
	Name  string     `json:"name,omitempty" doc:"what the member calls itself, which proves nothing"`
	Farm  string     `json:"farm,omitempty" doc:"absent for a seed, which belongs to none"`
	Role  trust.Role `json:"role"`
	State string     `json:"state" doc:"alive (in this farm), set aside (it failed or lied lately), connected, or banned"`
	Until time.Time  `json:"until,omitzero" doc:"when one that is set aside is tried again, at the soonest, or the ban ends"`
	Why   string     `json:"why,omitempty" doc:"why it is banned"`
	Path  string     `json:"path,omitempty" doc:"the other end of the connection with it, behind a relay's if there is no direct one; absent without a connection"`
	Way   swarm.Way  `json:"way,omitempty" enum:"LAN,direct,relayed" doc:"what that connection leads through"`
	Addrs []string   `json:"addrs,omitempty" doc:"where it says that it is reached"`
	// Received and Sent are of content alone.
	Received int64 `json:"received_bytes" doc:"of content, from it, since this node started"`
	Sent     int64 `json:"sent_bytes" doc:"of content, to it"`
	tally.Asked
}

// Self is what the node says of itself.
type Self struct {
	ID    string     `json:"id"`
	Name  string     `json:"name,omitempty"`
	Mesh  string     `json:"mesh"`
	Farm  string     `json:"farm"`
	Role  trust.Role `json:"role"`
	Addrs []string   `json:"addrs" doc:"full multiaddrs, as --bootstrap takes them"`
	// FarmAddr is what --farm-join of a neighbour takes.
	FarmAddr string    `json:"farm_addr,omitempty"`
	Revoked  time.Time `json:"revoked,omitzero" doc:"when this node learnt that it is no member any more"`
}

// Version returns the version that the node was built as.
func (n *Node) Version() string { return n.cfg.Version }

// Farm returns the name of this node's farm.
func (n *Node) Farm() string { return n.Membership.Identity().Farm }

// Awaited reports whether somebody waited for volumes of this node when it started.
func (n *Node) Awaited() bool { return n.awaited }

// Self describes this node.
func (n *Node) Self() Self {
	id := n.Membership.Identity()
	s := Self{ID: n.swarm.ID().String(), Name: n.Membership.Who(id.Key).Name, Mesh: n.verifier.Mesh().String(), Farm: id.Farm, Role: id.Role, Addrs: n.swarm.Addrs()}
	if n.farm != nil {
		s.FarmAddr = n.farm.Address()
	}
	s.Revoked, _ = n.verifier.Revoked(n.identity.Public())
	return s
}

// FarmPeers returns the live neighbours.
func (n *Node) FarmPeers() []Peer {
	out := []Peer{}
	if n.farm == nil {
		return out
	}
	aside := n.fetch.Aside()
	for _, m := range n.farm.Members() {
		if m.ID == n.swarm.ID() {
			continue
		}
		p := n.peer(peer.AddrInfo{ID: m.ID, Addrs: m.Addrs}, m.Identity, "alive")
		if until, bad := aside[m.ID]; bad {
			p.State, p.Until = "set aside", until
		}
		out = append(out, p)
	}
	return out
}

func (n *Node) peer(p peer.AddrInfo, who trust.Identity, state string) Peer {
	path, moved := n.swarm.Path(p.ID), n.exchange.With(p.ID)
	return Peer{Received: moved.Received, Sent: moved.Sent, Asked: n.fetch.Tally().Of(p.ID), ID: p.ID.String(), Name: n.Membership.Who(who.Key).Name, Farm: who.Farm, Role: who.Role, State: state, Path: path.Address, Way: path.Way, Addrs: swarm.Texts(p)}
}

// Members are all whom this node and its peers have met, each with how this node is connected with it.
func (n *Node) Members(ctx context.Context) []membership.Member {
	all := n.Membership.Members(ctx)
	for i, m := range all {
		if id, err := peer.Decode(m.ID); err == nil && m.State == membership.StateConnected {
			path, moved := n.swarm.Path(id), n.exchange.With(id)
			all[i].Path, all[i].Way, all[i].Received, all[i].Sent, all[i].Failures = path.Address, string(path.Way), moved.Received, moved.Sent, n.fetch.Tally().Of(id).Failures
		}
	}
	return all
}

// Moved is what this node has read since its start, by where it came from, and what of the origin.
func (n *Node) Moved() (fetch.Bytes, Origin) { return n.fetch.Bytes(), n.origin.view() }

// Neighbourhood is how this node's farm stands.
type Neighbourhood struct {
	State  string `json:"state" enum:"none,ok,cut off" doc:"none: this node does not gossip; cut off: it has lost all neighbours, found none of those that it was given, or can't gossip at --farm-bind"`
	Detail string `json:"detail,omitempty" doc:"who is missing"`
}

// The states of a farm.
const FarmNone, FarmOK, FarmCutOff = "none", "ok", "cut off"

// Neighbourhood says whether the farm's members are here, and who is not.
func (n *Node) Neighbourhood() Neighbourhood {
	switch {
	case n.farmless != nil:
		return Neighbourhood{FarmCutOff, "this node can't gossip: " + n.farmless.Error()}
	case n.farm == nil:
		return Neighbourhood{State: FarmNone}
	}
	lost, alone := n.farm.Lost()
	var missing []string
	for _, a := range lost[:min(len(lost), lostShown)] {
		missing = append(missing, fmt.Sprintf("%s at %s is lost since %s", cmp.Or(n.nameOf(a.ID), a.ID.String()), a.Address, a.Since.UTC().Format(time.RFC3339)))
	}
	if len(lost) > lostShown {
		missing = append(missing, fmt.Sprintf("and %d more", len(lost)-lostShown))
	}
	if alone != nil {
		missing = append(missing, "no neighbour answers: "+content.Line(alone))
	}
	out := Neighbourhood{FarmOK, strings.Join(missing, "; ")}
	if len(n.farm.Live()) == 1 && len(missing) > 0 {
		out.State = FarmCutOff
	}
	return out
}

// lostShown is how many lost members a message names.
const lostShown = 4

// nameOf is what a member calls itself, "" when that is not known.
func (n *Node) nameOf(id peer.ID) string {
	key, err := identity.KeyOf(id)
	if err != nil {
		return ""
	}
	return n.Membership.Who(key).Name
}

// bansShown bounds the banned that are listed.
const bansShown = 256

// Peers returns the neighbours, the other members that this node is connected with, and
// who is banned, by farm.
func (n *Node) Peers() []Peer {
	out := n.FarmPeers()
	for _, info := range n.swarm.Peers() {
		id := info.ID.String()
		if slices.ContainsFunc(out, func(p Peer) bool { return p.ID == id }) {
			continue
		}
		who, ok := n.peers.Of(info.ID)
		if !ok {
			continue // it has just gone
		}
		out = append(out, n.peer(info, who, "connected"))
	}
	bans := n.peers.Bans()
	for _, id := range slices.Sorted(maps.Keys(bans))[:min(len(bans), bansShown)] {
		out = append(out, Peer{ID: id.String(), Name: n.nameOf(id), State: "banned", Until: bans[id].Until, Why: bans[id].Why})
	}
	slices.SortFunc(out, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Farm, b.Farm), cmp.Compare(a.ID, b.ID)) })
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
	if young && len(n.cfg.Bootstrap)+len(n.Membership.State().Bootstrap) > 0 && len(n.swarm.Peers()) == 0 {
		out = append(out, "a member of the mesh")
	}
	if n.Volumes != nil && !n.Volumes.Opened() {
		out = append(out, "its volumes")
	}
	return out
}

// Status is how a node stands.
type Status struct {
	Ready         bool             `json:"ready"`
	Waiting       []string         `json:"waiting,omitempty" doc:"what the node waits for before it is ready"`
	Warnings      []Warning        `json:"warnings" doc:"what is amiss though the node is ready"`
	Self          Self             `json:"self"`
	Origin        Origin           `json:"origin"`
	Farm          []Peer           `json:"farm" doc:"the live neighbours"`
	Neighbourhood Neighbourhood    `json:"neighbourhood"`
	Bytes         fetch.Bytes      `json:"bytes"`
	Cache         Cache            `json:"cache"`
	Followed      *images.Followed `json:"followed,omitempty" doc:"how it stands with the names that it follows"`
	Volumes       int              `json:"volumes"`
	Failing       []string         `json:"failing,omitempty" doc:"volumes that have failed, or whose writes fail as the disk is full"`
	Disks         Disks            `json:"disks"`
	Seed          *seed.View       `json:"seed,omitempty" doc:"what a seed sends; absent in a node"`
	Started       time.Time        `json:"started"`
	Version       string           `json:"version"`
}

// Disks says how the node serves block devices.
type Disks struct {
	Served bool   `json:"served" doc:"volumes are block devices, where nothing else is asked for; else they are served over NBD"`
	Detail string `json:"detail,omitempty" doc:"why they are not, or what may befall them"`
}

// Status says how the node stands.
func (n *Node) Status() Status {
	waiting := n.Waiting()
	s := Status{
		Ready: len(waiting) == 0, Waiting: waiting, Warnings: n.Warnings(), Self: n.Self(), Origin: n.origin.view(), Farm: n.FarmPeers(), Neighbourhood: n.Neighbourhood(),
		Bytes: n.fetch.Bytes(), Cache: n.Cache(), Followed: n.Images.Followed(), Started: n.started, Version: n.cfg.Version, Disks: n.disks(),
	}
	if n.allowance != nil {
		v := n.allowance.View()
		s.Seed = &v
	}
	if n.Volumes != nil {
		s.Volumes, s.Failing = n.Volumes.Count(), n.Volumes.Failing()
	}
	return s
}

func (n *Node) disks() Disks {
	none := ErrNoVolumes
	if n.Volumes != nil {
		none = n.Volumes.NoDisks()
	}
	d := Disks{Served: none == nil}
	if err := cmp.Or(none, n.cfg.Flusher); err != nil {
		d.Detail = content.Line(err)
	}
	return d
}

// ErrNoVolumes is why a node has no Volumes.
var ErrNoVolumes = fmt.Errorf("this node is run as a seed, and has no volumes: %w", errors.ErrUnsupported)

// Cache is how the cache stands.
type Cache struct {
	Chunks int64 `json:"chunks"`
	Used   int64 `json:"used_bytes"`
	Quota  int64 `json:"quota_bytes"`
	Limit  int64 `json:"limit_bytes" doc:"what of the quota the disk has room for, beside what stays free for volumes"`
	Full   bool  `json:"full" doc:"true while chunks are passed on without being kept"`
}

// Cache describes the cache.
func (n *Node) Cache() Cache {
	s := n.cache.Stats()
	return Cache{Chunks: s.Chunks, Used: s.Disk, Quota: s.Quota, Limit: s.Limit, Full: s.Full}
}

// Evict makes room: it removes chunks that are not pinned, the least useful first,
// until they make that many bytes, and returns how many bytes it were.
func (n *Node) Evict(bytes int64) (freed int64) { return n.cache.Evict(bytes) }

// TokenRequest says what a member that joins will be.
type TokenRequest struct {
	Role     trust.Role `json:"role" enum:"node,seed,publisher,admin"`
	Farm     string     `json:"farm,omitempty" doc:"the farm that the member will belong to"`
	Lifetime float64    `json:"lifetime_seconds,omitempty" minimum:"0" maximum:"3.2e9" doc:"how long the token is good; a day when not given"`
}

// Token is a join token, or what is on record of one.
type Token struct {
	ID      string     `json:"id"`
	Token   string     `json:"token,omitempty" doc:"shown once, when it is made"`
	Limits  string     `json:"limits,omitempty" doc:"what those that join with it will not have; said when it is made"`
	Role    trust.Role `json:"role"`
	Farm    string     `json:"farm,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	State   string     `json:"state" enum:"open,used,revoked,expired"`
	UsedBy  string     `json:"used_by,omitempty" doc:"the ID of the member that it brought in"`
}

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(req TokenRequest) (Token, error) {
	made, st, err := n.Membership.CreateToken(req.Role, req.Farm, time.Duration(req.Lifetime*float64(time.Second)))
	if err != nil {
		return Token{}, err
	}
	made.Origin, made.Bootstrap = withoutCredentials(n.origin.url), n.Self().Addrs
	t := n.tokenOf(st)
	t.Token, t.Limits = made.String(), n.tokenLimits()
	return t, nil
}

// Tokens returns what is on record of the tokens made here.
func (n *Node) Tokens() (out []Token, err error) {
	list, err := n.Membership.Tokens()
	for _, st := range list {
		out = append(out, n.tokenOf(st))
	}
	return out, err
}

func (n *Node) tokenOf(st trust.InviteState) Token {
	out := Token{ID: st.ID, Role: st.Role, Farm: st.Farm, Created: st.Created, Expires: st.Expires, State: "open"}
	switch {
	case st.UsedBy != nil:
		out.State, out.UsedBy = "used", identity.PeerID(*st.UsedBy).String()
	case st.Revoked:
		out.State = "revoked"
	case n.cfg.Now().After(st.Expires):
		out.State = "expired"
	}
	return out
}

// withoutCredentials strips what a URL must not carry to others.
func withoutCredentials(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// tokenLimits says what members that join with a token of this node will not have:
// "" when nothing.
func (n *Node) tokenLimits() string {
	var out []string
	if strings.HasPrefix(n.origin.url, "file:") {
		out = append(out, "the origin "+n.origin.url+" is a folder of this host and serves one host: members elsewhere read and write through this node, while it runs; a mesh of several hosts is founded with --origin s3://…")
	}
	if !slices.ContainsFunc(n.swarm.Addrs(), func(a string) bool { return !strings.Contains(a, "/127.0.0.1/") && !strings.Contains(a, "/::1/") }) {
		out = append(out, "this node is reached from its own host alone; --listen or --announce gives it an address that others reach")
	}
	return strings.Join(out, "; ")
}

// Why says what the slowest reads of a volume waited for.
type Why struct {
	Words      []string   `json:"words" doc:"what the reads waited for, a line for those that waited for the same"`
	Reads      []why.Read `json:"reads" doc:"those under way, then those of the last ten minutes that took longer than 10 ms, the slowest first, 64 at most"`
	PassedOver []Peer     `json:"passed_over" doc:"members that are not asked now, as they failed or lied lately"`
}

// Why returns the slowest reads of the last minutes of a volume that this node serves.
func (n *Node) Why(ctx context.Context, volume string) (Why, error) {
	v, err := n.Volumes.Find(ctx, volume)
	out := Why{Words: []string{}, Reads: []why.Read{}, PassedOver: []Peer{}}
	if err != nil || v.Slow == nil {
		return out, err
	}
	out.Reads = append(out.Reads, v.Slow()...)
	for i := range out.Reads {
		steps := slices.Clone(out.Reads[i].Steps) // the kept ones are others' too
		for j := range steps {
			steps[j].Name = n.nameOf(steps[j].Peer)
		}
		out.Reads[i].Steps = steps
	}
	out.Words = append(out.Words, why.Explain(out.Reads)...)
	out.PassedOver = append(out.PassedOver, slices.DeleteFunc(n.FarmPeers(), func(p Peer) bool { return p.Until.IsZero() })...)
	return out, nil
}
