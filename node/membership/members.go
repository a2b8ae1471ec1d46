package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

const (
	// rollInterval is how often the roll is written for members, rollTimes for times.
	rollInterval = time.Minute
	rollTimes    = 10 * time.Minute
	// rollAsked is how many members are asked whom they have met, at most.
	rollAsked = 8
	// rollPageMax is how many members an answer has: within a call's size, at 2 kB each.
	rollPageMax = 400
	// tellTimeout bounds how long a revocation waits for connected members to hear of it.
	tellTimeout = 5 * time.Second
)

// MemberState says whether a member is one, and here.
type MemberState string

// The states of a member.
const (
	StateSelf      MemberState = "this node"
	StateConnected MemberState = "connected"
	StateAway      MemberState = "away"
	StateRevoked   MemberState = "revoked"
)

// Member is one of the mesh, or was.
type Member struct {
	trust.Identity
	ID    string      `json:"id" doc:"its peer ID"`
	Name  string      `json:"name,omitempty" doc:"what the member calls itself, which proves nothing"`
	State MemberState `json:"state" enum:"this node,connected,away,revoked"`
	// Path, and the others up to LastSeen, are for the node to fill in, which knows the connections.
	Path     string    `json:"path,omitempty" doc:"the other end of the connection with it, behind a relay's if there is no direct one"`
	Way      string    `json:"way,omitempty" enum:"LAN,direct,relayed" doc:"what that connection leads through"`
	Received int64     `json:"received_bytes,omitempty" doc:"of content, from it, since this node started"`
	Sent     int64     `json:"sent_bytes,omitempty" doc:"of content, to it"`
	Failures int64     `json:"failures,omitempty" doc:"of requests to it that it failed, or left unanswered"`
	LastSeen time.Time `json:"last_seen" doc:"when a member last dealt with it, or when this node learnt that it was revoked"`
}

// Members returns all that this member and those connected have met, by farm and name.
func (m *Membership) Members(ctx context.Context) []Member {
	m.gather(ctx)
	here := m.here()
	var out []Member
	known := map[trust.PublicKey]bool{}
	for _, e := range m.roll.list() {
		x := m.view(e, here)
		known[x.Key] = true
		out = append(out, x)
	}
	m.mu.RLock()
	for key, r := range m.revoked { // who was never met is revoked too
		if !known[key] {
			x := unmet(key, StateRevoked)
			x.LastSeen = time.Unix(0, r.Learnt)
			out = append(out, x)
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(strings.Compare(a.Farm, b.Farm), strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return out
}

// Who returns what is known of a member without asking others; at least its ID.
func (m *Membership) Who(key trust.PublicKey) Member {
	e, ok := m.roll.of(key)
	if !ok {
		return unmet(key, StateAway)
	}
	return m.view(e, m.here())
}

// Find returns whom a text names: a key, an ID, a name, or what either begins with.
func (m *Membership) Find(ctx context.Context, who string) (Member, error) {
	return findMember(m.Members(ctx), who)
}

func unmet(key trust.PublicKey, state MemberState) Member {
	return Member{Identity: trust.Identity{Key: key}, ID: identity.PeerID(key).String(), State: state}
}

// here are those that this member is connected with.
func (m *Membership) here() map[trust.PublicKey]bool {
	out := map[trust.PublicKey]bool{}
	for _, c := range m.connected() {
		out[c.who.Key] = true
	}
	return out
}

func (m *Membership) view(e enrolled, here map[trust.PublicKey]bool) Member {
	id, now := e.Chain.Identity(), m.cfg.Now()
	x := Member{Identity: id, ID: identity.PeerID(id.Key).String(), Name: e.Name, State: StateAway, LastSeen: time.UnixMilli(e.Seen)}
	since, gone := m.verifier.Revoked(id.Key)
	switch {
	case gone:
		x.State, x.LastSeen = StateRevoked, since
	case id.Key == m.cfg.Identity.Public():
		x.State, x.LastSeen = StateSelf, now
	case here[id.Key]:
		x.State, x.LastSeen = StateConnected, now
	}
	return x
}

// String names a member to people, and says when it was last seen if it is not here.
func (m Member) String() string {
	text := m.ID
	if m.Name != "" {
		text = m.Name + " (" + m.ID + ")"
	}
	if m.Farm != "" {
		text += " of farm " + m.Farm
	}
	switch {
	case m.State == StateAway && m.LastSeen.IsZero():
		return text + " (away, never met)"
	case m.State == StateAway:
		return text + " (away, last seen on " + m.LastSeen.UTC().Format(time.RFC3339) + ")"
	case m.State == StateRevoked:
		return text + " (revoked)"
	}
	return text
}

type rollRequest struct {
	// After is the last key of the page before.
	After trust.PublicKey `cbor:"after"`
}

// rollReply tells of members, without what this one has met itself.
type rollReply struct {
	Members []enrolled `cbor:"members"`
	More    bool       `cbor:"more"`
}

// rollPage answers with members that were met.
func (m *Membership) rollPage(q rollRequest) (rollReply, error) {
	all := m.roll.list()
	i, found := slices.BinarySearchFunc(all, q.After, func(e enrolled, key trust.PublicKey) int { return compareKeys(e.Chain[0].Subject, key) })
	if found {
		i++
	}
	var r rollReply
	for _, e := range all[i:] {
		if r.More = len(r.Members) == rollPageMax; r.More {
			break
		}
		e.Met = nil
		r.Members = append(r.Members, e)
	}
	return r, nil
}

// gather asks connected members whom they have met.
func (m *Membership) gather(ctx context.Context) {
	connected := slices.DeleteFunc(m.connected(), func(c member) bool { return !c.who.Role.IsMember() })
	var all sync.WaitGroup
	for _, c := range connected[:min(len(connected), rollAsked)] { // a map's order is none
		all.Go(func() {
			if err := m.gatherFrom(ctx, c); err != nil {
				m.cfg.Log.Debug("a member does not say whom it has met", "peer", c.id, "err", err)
			}
		})
	}
	all.Wait()
}

func (m *Membership) gatherFrom(ctx context.Context, c member) error {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	var after trust.PublicKey
	for range rollMax/rollPageMax + 1 {
		var r rollReply
		if err := m.call(ctx, c.id, rollMethod, rollRequest{after}, &r); err != nil {
			return err
		}
		if len(r.Members) > rollPageMax {
			return fmt.Errorf("roll: %w: %d members on a page", content.ErrInvalid, len(r.Members))
		}
		now := m.cfg.Now()
		for _, e := range r.Members {
			if len(e.Chain) == 0 || compareKeys(e.Chain[0].Subject, after) <= 0 {
				return fmt.Errorf("roll: %w: not in order", content.ErrInvalid)
			}
			after = e.Chain[0].Subject
			if _, known := m.roll.knownSince(e.Chain[0]); !known {
				if _, err := m.verifier.Certified(e.Chain, now); err != nil {
					continue // it has expired, or never was one
				}
			}
			m.roll.heard(e.Chain, e.Name, c.who.Key, time.UnixMilli(e.Seen), now)
		}
		if !r.More {
			return nil
		}
	}
	return nil
}

// keepRoll writes the roll now and then, and has admins hear of whom they may renew.
func (m *Membership) keepRoll(ctx context.Context) {
	sinceTimes := time.Duration(0)
	every(ctx, rollInterval, nil, func() {
		times := sinceTimes%rollTimes == 0
		sinceTimes += rollInterval
		if times && m.Identity().Role == trust.RoleAdmin {
			m.gather(ctx)
		}
		if m.roll.stale(times) {
			if err := m.roll.save(); err != nil {
				m.cfg.Log.Warn("the roll of members is not on disk", "err", err)
			}
		}
	})
}

// Revocation reports what became of one.
type Revocation struct {
	Token  string `json:"token,omitempty" doc:"the token that was named"`
	Member Member `json:"member,omitzero" doc:"absent when an unused token was made useless"`
	Told   int    `json:"told" doc:"connected members that have heard of it already"`
}

// Revoke ends the membership of whoever who names: a peer ID, a public key, a name, the
// beginning of an ID or name that is nobody else's, or the ID of a token made here, for
// the member that it brought in. An unused token is made useless. It is in force here,
// and on disk, when Revoke returns. An admin has to say so to revoke itself.
func (m *Membership) Revoke(ctx context.Context, who string, myself bool) (Revocation, error) {
	if err := m.admin("revoke"); err != nil {
		return Revocation{}, err
	}
	out, err := m.tokenToRevoke(who)
	if err != nil || out.Token != "" && out.Member.Key.IsZero() {
		return out, err
	}
	all := m.Members(ctx) // and so this admin knows whom it may have to renew
	if out.Token != "" {
		who = out.Member.Key.String()
	}
	if out.Member, err = findMember(all, who); err != nil {
		return out, err
	}
	if out.Member.Key == m.cfg.Identity.Public() && !myself {
		others := slices.ContainsFunc(all, func(x Member) bool {
			return x.Role == trust.RoleAdmin && x.State != StateRevoked && x.State != StateSelf
		})
		text := "it could not be undone"
		if !others {
			text = "and it is the last admin that is known: nobody could make tokens or revoke any more but by the mesh key"
		}
		return out, fmt.Errorf("revoke %s: %w: that is this node itself, %s; say --myself if you mean it", out.Member.ID, content.ErrForbidden, text)
	}
	signer, err := m.revoker()
	if err != nil {
		return out, err
	}
	sealed, err := signer.RevokeKey(out.Member.Key, m.cfg.Now())
	if err != nil {
		return out, err
	}
	m.mu.Lock()
	m.owed = m.cfg.Now()
	m.mu.Unlock()
	m.learn([]claim{{sealed: sealed}})
	if _, ok := m.verifier.Revoked(out.Member.Key); !ok {
		return out, fmt.Errorf("revoke %s: %w: there are %d revocations already", out.Member.ID, content.ErrNoSpace, revokedMax)
	}
	again, err := m.countersign(signer)
	if err != nil {
		return out, err
	}
	telling, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	news := append([]revoked{{Sealed: sealed, Learnt: m.cfg.Now().UnixNano()}}, again...)
	for part := range slices.Chunk(news, newsMax) {
		told := m.tellAll(telling, part)
		out.Told = max(out.Told, told)
	}
	out.Member.State = StateRevoked
	return out, nil
}

// revoker signs revocations: the mesh key if at hand. Its word counts whoever was
// revoked, so no admin gone bad can be first to tell a member that was away.
func (m *Membership) revoker() (trust.Signer, error) {
	signer, err := m.issuer(trust.RoleAdmin)
	if err == nil && signer.Renewed == nil { // bare, for it has no certificate
		signer.Chain, err = signer.Issue(trust.Identity{Key: signer.Key.Public(), Role: trust.RoleAdmin, Farm: m.Identity().Farm}, m.cfg.Now())
	}
	return signer, err
}

func (m *Membership) tokenToRevoke(id string) (Revocation, error) {
	st, err := m.invites.Revoke(id)
	switch {
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrInvalid):
		return Revocation{}, nil // it is no token's
	case st.UsedBy != nil:
		return Revocation{Token: id, Member: Member{Identity: trust.Identity{Key: *st.UsedBy}}}, nil
	}
	return Revocation{Token: id}, err
}

// findMember returns whom a text names.
func findMember(all []Member, who string) (Member, error) {
	key, err := trust.ParsePublicKey(who)
	if id, notID := peer.Decode(who); err != nil && notID == nil {
		key, err = identity.KeyOf(id)
	}
	var exact, begins []Member
	for _, x := range all {
		switch {
		case x.Key == key:
			return x, nil
		case x.Name == who:
			exact = append(exact, x)
		case strings.HasPrefix(x.ID, who) || x.Name != "" && strings.HasPrefix(x.Name, who):
			begins = append(begins, x)
		}
	}
	if err == nil { // nobody here has met it
		return unmet(key, StateAway), nil
	}
	found := exact
	if len(found) == 0 {
		found = begins
	}
	switch {
	case len(found) == 1 && who != "":
		return found[0], nil
	case len(found) == 0 || who == "":
		return Member{}, fmt.Errorf("member %.60q: %w; `grange mesh members` shows all that are known", who, content.ErrNotFound)
	}
	var ids []string
	for _, x := range found[:min(len(found), 4)] {
		ids = append(ids, x.ID)
	}
	return Member{}, fmt.Errorf("member %.60q: %w: %d members are called so; name one by its ID: %s", who, content.Ambiguous, len(found), strings.Join(ids, ", "))
}
