package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
)

// world is a mesh of memberships that reach each other through memory: each call is
// answered for whom the callee's verifier says the caller is, as the exchange does.
type world struct {
	t *testing.T

	mu    sync.Mutex // guards what follows
	nodes map[peer.ID]*node
	cut   map[peer.ID]bool // is away
}

type node struct {
	*Membership
	w       *world
	id      peer.ID
	dir     string
	key     trust.PrivateKey
	revoked []trust.PublicKey // as OnRevoked said
	rotated []trust.Secrets
	stop    func()
}

func newWorld(t *testing.T) *world {
	return &world{t: t, nodes: map[peer.ID]*node{}, cut: map[peer.ID]bool{}}
}

// TestNamesComeWithThePapers: who has joined, and who let it in, know each other's names before they meet again.
func TestNamesComeWithThePapers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		second := w.join(first, "second", trust.RoleAdmin, "alpha")
		for n, who := range map[*node]string{first: "second", second: "first"} {
			if x, err := findMember(n.Members(t.Context()), who); err != nil || x.Name != who {
				t.Errorf("%s: %+v, %v", who, x, err)
			}
		}
	})
}

func (w *world) entry(key trust.PrivateKey, dir, farm string) Entry {
	return Entry{Dir: dir, identity: key, Farm: farm, FarmDefault: "main", Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

// found makes the first member.
func (w *world) found(name, farm string) *node {
	w.t.Helper()
	dir := w.t.TempDir()
	s, key, err := w.entry(trust.PrivateKey{}, dir, farm).Enter(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.open(name, key, dir, s)
}

// join brings in another by a token of by.
func (w *world) join(by *node, name string, role trust.Role, farm string) *node {
	w.t.Helper()
	token, _, err := by.CreateToken(role, farm, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := w.redeem(by, token, trust.NewPrivateKey(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// redeem shows a token's invite to by, as a stranger does.
func (w *world) redeem(by *node, token trust.Token, key trust.PrivateKey, name string) (*node, error) {
	body, err := by.codec.Marshal(redeemRequest{token.Invite, key.Public(), name})
	if err != nil {
		return nil, err
	}
	id := identity.PeerID(key.Public())
	b, err := by.Membership.Call(w.t.Context(), exchange.Peer{ID: id}, redeemMethod, body)
	if err != nil {
		return nil, err
	}
	var got papers
	if err := by.codec.Unmarshal(b, &got); err != nil {
		return nil, err
	}
	dir := w.t.TempDir()
	e := w.entry(key, dir, "")
	s, err := e.accept(token, trust.NewVerifier(token.Mesh), got)
	if err == nil {
		err = s.save(dir)
	}
	if err != nil {
		return nil, err
	}
	return w.open(name, key, dir, s), nil
}

func (w *world) open(name string, key trust.PrivateKey, dir string, s State) *node {
	w.t.Helper()
	var err error
	n := &node{w: w, id: identity.PeerID(key.Public()), dir: dir, key: key}
	n.Membership, err = Open(Config{
		Dir: dir, Identity: key, Name: name, OnRevoked: func(fresh []trust.PublicKey) {
			w.mu.Lock()
			defer w.mu.Unlock()
			n.revoked = append(n.revoked, fresh...)
		}, OnRotated: func(s trust.Secrets) {
			w.mu.Lock()
			defer w.mu.Unlock()
			n.rotated = append(n.rotated, s)
		},
		Catalog: func() (*catalog.Catalog, bool) { return nil, false }, Told: func(catalog.Record, time.Time) {}, OnRenewed: func(trust.Chain) {},
		Incarnation: func() []byte { return nil }, OnIncarnation: func([]byte) {}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}, s)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Connect(n)
	w.mu.Lock()
	w.nodes[n.id] = n
	w.mu.Unlock()
	return n
}

// run starts nodes; stop ends one, as the end of the test does.
func (w *world) run(nodes ...*node) {
	for _, n := range nodes {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		n.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				w.t.Error(err)
			}
		})
	}
}

func (w *world) stop() {
	for _, n := range w.nodes {
		if n.stop != nil {
			n.stop()
		}
	}
}

// restart opens what a node has on disk.
func (w *world) restart(n *node) *node {
	w.t.Helper()
	if n.stop != nil {
		n.stop()
	}
	s, err := load(n.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.open(n.cfg.Name, n.key, n.dir, s)
}

func (w *world) away(n *node, away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[n.id] = away
}

// Peers implements Network: everybody who is here.
func (n *node) Peers() []peer.ID {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var out []peer.ID
	for id := range n.w.nodes {
		if id != n.id && !n.w.cut[id] && !n.w.cut[n.id] {
			out = append(out, id)
		}
	}
	return out
}

func (n *node) reach(id peer.ID) (*node, error) {
	if !slices.Contains(n.Peers(), id) {
		return nil, fmt.Errorf("%s: %w", id, content.ErrUnavailable)
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.nodes[id], nil
}

// Meet implements Network.
func (n *node) Meet(_ context.Context, id peer.ID) (trust.Identity, error) {
	other, err := n.reach(id)
	if err != nil {
		return trust.Identity{}, err
	}
	return n.verifier.Recognize(other.State().Chain, time.Now())
}

// Call implements Network.
func (n *node) Call(ctx context.Context, id peer.ID, method string, body []byte) ([]byte, error) {
	other, err := n.reach(id)
	if err != nil {
		return nil, err
	}
	who, err := other.verifier.Recognize(n.State().Chain, time.Now())
	if err != nil {
		who = trust.Identity{}
	}
	return other.Membership.Call(ctx, exchange.Peer{ID: n.id, Identity: who}, method, body)
}

func (n *node) knows(other *node) bool {
	_, ok := n.verifier.Revoked(other.key.Public())
	return ok
}

// settle lets time go by, in which everything that is under way happens.
func settle(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// TestRevocationIsEverywhere: at once where members are connected, on contact for who
// was away, and after a restart; the revoked gets nothing any more.
func TestRevocationIsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		admin := w.found("first", "alpha")
		late := w.join(admin, "late", trust.RoleNode, "beta")
		bad := w.join(admin, "bad", trust.RolePublisher, "beta")
		seed := w.join(admin, "seed", trust.RoleSeed, "")
		all := []*node{admin, late, bad, seed}
		defer w.stop()
		w.run(all...)
		settle(5 * time.Second)
		w.away(late, true)
		before, err := bad.Signer().Seal(trust.Envelope{Kind: content.KindImage, Name: "before", Version: 1, SignedAt: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		seen := time.Now()
		settle(time.Second)
		r, err := admin.Revoke(t.Context(), "bad", false)
		if err != nil || r.Member.Key != bad.key.Public() || r.Told == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		settle(2 * time.Second)
		if !seed.knows(bad) || late.knows(bad) || len(seed.revoked) != 1 {
			t.Errorf("the seed knows: %t, who is away: %t", seed.knows(bad), late.knows(bad))
		}
		if _, err := seed.Meet(t.Context(), bad.id); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("the revoked is met: %v", err)
		}
		if _, err := bad.Call(t.Context(), admin.id, secretsMethod, []byte{0xa0}); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("the revoked asks for secrets: %v", err)
		}
		after, err := bad.Signer().Seal(trust.Envelope{Kind: content.KindImage, Name: "after", Version: 1, SignedAt: seen.Add(-time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.verifier.Open(before, seen, time.Now()); err != nil {
			t.Errorf("what it signed before: %v", err)
		}
		if _, err := admin.verifier.Open(after, time.Now(), time.Now()); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("what it signs after, with a time of before: %v", err)
		}
		w.away(admin, true) // who comes back hears it from anybody
		w.away(late, false)
		settle(3 * time.Second)
		if !late.knows(bad) {
			t.Error("who was away has met those that know, and does not")
		}
		if late = w.restart(late); !late.knows(bad) {
			t.Error("forgotten by a restart")
		}
	})
}

// TestOnlyAdminsRevoke, and a revoked admin does no more.
func TestOnlyAdminsRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		second := w.join(first, "second", trust.RoleAdmin, "alpha")
		member := w.join(first, "member", trust.RoleNode, "alpha")
		defer w.stop()
		w.run(first, second, member)
		settle(3 * time.Second)
		if _, err := member.Revoke(t.Context(), "second", false); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("a node revokes: %v", err)
		}
		if _, _, err := member.CreateToken(trust.RoleNode, "", 0); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("a node makes a token: %v", err)
		}
		if _, err := member.Rotate(t.Context()); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("a node rotates: %v", err)
		}
		if _, err := second.Revoke(t.Context(), "second", false); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("it revokes itself, and did not say so: %v", err)
		}
		for _, who := range []string{"nobody", "", "12D3KooW"} {
			if _, err := second.Revoke(t.Context(), who, false); err == nil {
				t.Errorf("%q is somebody", who)
			}
		}
		if _, err := second.Revoke(t.Context(), first.key.Public().String(), false); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Second)
		late, err := trust.Signer{Key: first.key, Chain: first.State().Chain}.RevokeKey(second.key.Public(), time.Now().Add(-time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []*node{second, member} {
			if n.learn([]claim{{sealed: late}}) != 0 || n.knows(second) {
				t.Error("a revoked admin revokes the one that revoked it")
			}
		}
		forged := w.join(first, "forged", trust.RoleNode, "alpha") // it does not know yet, or does not care
		if _, err := member.Meet(t.Context(), forged.id); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("who joined by a token of a revoked admin: %v", err)
		}
		if _, err := first.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Second)
		if n := member.State().Secrets.Generation.Number; n != 1 {
			t.Errorf("a revoked admin rotates: generation %d", n)
		}
	})
}

// TestTheFirstNodeIsLost: a second admin makes tokens, and revokes the first; who the
// first had brought in stays, for members of before and for those that come after.
func TestTheFirstNodeIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		second := w.join(first, "second", trust.RoleAdmin, "alpha")
		near := w.join(first, "near", trust.RoleNode, "alpha")
		away := w.join(first, "away", trust.RolePublisher, "beta")
		defer w.stop()
		w.run(first, second, near, away)
		settle(5 * time.Second)
		w.away(away, true)
		w.away(first, true)
		settle(time.Second)
		if _, err := second.Revoke(t.Context(), first.id.String(), false); err != nil {
			t.Fatal(err)
		}
		fresh := w.join(second, "fresh", trust.RoleNode, "beta")
		w.run(fresh)
		settle(30 * time.Second)
		w.away(away, false)
		settle(30 * time.Second)
		for _, n := range []*node{near, away} {
			if n.verifier.Orphaned(n.State().Chain) {
				t.Errorf("%s has still the certificate of the first", n.cfg.Name)
			}
			if id, err := fresh.verifier.Verify(n.State().Chain, time.Now()); err != nil || id.Key != n.key.Public() {
				t.Errorf("%s, for one that never met it before: %v", n.cfg.Name, err)
			}
		}
		if id := away.Identity(); id.Role != trust.RolePublisher || id.Farm != "beta" {
			t.Errorf("renewed as %+v", id)
		}
		if _, err := second.renewFor(trust.Identity{Key: away.key.Public(), Role: trust.RoleAdmin, Farm: "beta"}); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("an admin is renewed unasked: %v", err)
		}
		w.away(first, false) // stolen, not lost: what it issues now is nobody's
		forged, err := trust.Signer{Key: first.key, Chain: first.State().Chain}.Issue(trust.Identity{Key: trust.NewPrivateKey().Public(), Role: trust.RoleAdmin, Farm: "alpha"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []*node{second, near, away, fresh} {
			if _, err := n.verifier.Verify(forged, time.Now()); !errors.Is(err, content.ErrForbidden) {
				t.Errorf("%s believes a certificate of the revoked: %v", n.cfg.Name, err)
			}
		}
		for _, m := range second.Members(t.Context()) {
			if want := map[string]MemberState{"first": StateRevoked, "second": StateSelf}[m.Name]; want == "" && m.State != StateConnected || want != "" && m.State != want {
				t.Errorf("%s is %s", m.Name, m.State)
			}
		}
	})
}

// TestRotation reaches all that are entitled, those that were away too, each with what
// its certificate says.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		admin := w.found("first", "alpha")
		second := w.join(admin, "second", trust.RoleAdmin, "beta")
		near := w.join(admin, "near", trust.RoleNode, "alpha")
		mate := w.join(admin, "mate", trust.RoleNode, "beta")
		late := w.join(admin, "late", trust.RoleNode, "beta")
		seed := w.join(admin, "seed", trust.RoleSeed, "")
		bad := w.join(admin, "bad", trust.RoleNode, "beta")
		defer w.stop()
		w.run(admin, second, near, mate, late, seed, bad)
		settle(3 * time.Second)
		old := admin.State().Secrets
		w.away(late, true)
		if _, err := admin.Revoke(t.Context(), "bad", false); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle(10 * time.Second)
		next := admin.State().Secrets
		if next.Generation.Number != 2 || next.Root == old.Root || !slices.Equal(admin.Announce(content.Mesh()), [][32]byte{next.Announce, old.Announce}) {
			t.Errorf("the admin has %+v", next.Generation)
		}
		check := func(n *node) {
			t.Helper()
			id := n.Identity()
			if got := n.State().Secrets; got != next.For(id.Role, id.Farm) || len(n.rotated) != 1 {
				t.Errorf("%s, a %s of farm %s, has generation %d", n.cfg.Name, id.Role, id.Farm, got.Generation.Number)
			}
		}
		check(second)
		check(near)
		check(mate)
		alpha, beta := content.Farm("alpha"), content.Farm("beta")
		if a := near.Announce(alpha); !slices.Equal(a, admin.Announce(alpha)) || slices.Contains(a, mate.Announce(beta)[0]) || slices.Contains(a, next.Announce) {
			t.Error("a farm announces what is its own where others find it")
		}
		if got := bad.State().Secrets; got.Generation.Number != 1 {
			t.Error("the revoked has the new secrets")
		}
		w.away(admin, true)
		w.away(second, true) // a member of its own farm helps as well
		w.away(late, false)
		settle(30 * time.Second)
		check(late)
		if seed.State().Secrets.Announce != [32]byte{} || len(seed.rotated) != 0 {
			t.Error("a seed has secrets")
		}
		if late = w.restart(late); late.State().Secrets.Generation != next.Generation || len(late.Gossip()) != 2 {
			t.Error("forgotten by a restart, or the key before is")
		}
		settle(formerFor)
		if len(late.Announce(content.Mesh())) != 1 || len(late.Gossip()) != 1 {
			t.Error("the secrets before are used for ever")
		}
	})
}

// TestMeshKeyBringsAnAdminBack when none is left, and is of one mesh.
func TestMeshKeyBringsAnAdminBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		member := w.join(first, "member", trust.RoleNode, "beta")
		other := newWorld(t).found("other", "alpha")
		key, err := first.MeshKey()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := member.MeshKey(); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("a member has the mesh key: %v", err)
		}
		if err := other.ImportMeshKey(t.Context(), key); !errors.Is(err, content.ErrConflict) {
			t.Errorf("into another mesh: %v", err)
		}
		if err := trust.SaveKey(filepath.Join(member.dir, meshKeyFile), trust.NewPrivateKey()); err != nil {
			t.Fatal(err)
		}
		if err := member.ImportMeshKey(t.Context(), key); !errors.Is(err, content.ErrExists) {
			t.Errorf("over another key: %v", err)
		}
		member = w.restart(member)
		if err := trust.SaveKey(filepath.Join(member.dir, meshKeyFile), key); err != nil { // killed after the first step
			t.Fatal(err)
		}
		for range 2 {
			if err := member.ImportMeshKey(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		if member = w.restart(member); member.Identity() != (trust.Identity{Key: member.key.Public(), Role: trust.RoleAdmin, Farm: "beta"}) {
			t.Errorf("%+v", member.Identity())
		}
		if _, err := member.Revoke(t.Context(), first.id.String(), false); err != nil {
			t.Error(err)
		}
		if n := w.join(member, "fresh", trust.RoleNode, "gamma"); n.Identity().Farm != "gamma" {
			t.Errorf("%+v", n.Identity())
		}
	})
}

// TestTokens: a used one is no way to its member's secrets later, and names whom to
// revoke.
func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		admin := w.found("first", "alpha")
		token, st, err := admin.CreateToken(trust.RoleNode, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		key := trust.NewPrivateKey()
		n, err := w.redeem(admin, token, key, "member")
		if err != nil || n.State().Secrets != admin.State().Secrets.For(trust.RoleNode, "alpha") {
			t.Fatalf("%v", err)
		}
		if _, err := w.redeem(admin, token, key, "member"); err != nil { // the reply was lost
			t.Error(err)
		}
		settle(time.Hour)
		for _, k := range []trust.PrivateKey{key, trust.NewPrivateKey()} {
			if _, err := w.redeem(admin, token, k, "thief"); !errors.Is(err, content.ErrForbidden) {
				t.Errorf("used, and shown again: %v", err)
			}
		}
		if err := admin.RevokeToken(st.ID); !errors.Is(err, content.ErrConflict) {
			t.Errorf("token revoke of a used one: %v", err)
		}
		if r, err := admin.Revoke(t.Context(), st.ID, false); err != nil || r.Member.Key != key.Public() || !admin.knows(n) {
			t.Errorf("%+v, %v", r, err)
		}
		unused, st, err := admin.CreateToken(trust.RoleNode, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := admin.Revoke(t.Context(), st.ID, false); err != nil || !r.Member.Key.IsZero() {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := w.redeem(admin, unused, trust.NewPrivateKey(), "late"); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("a useless token: %v", err)
		}
		for _, id := range []string{"nope", "0123456789abcdef"} {
			if err := admin.RevokeToken(id); !errors.Is(err, content.ErrNotFound) {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}
