package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/swept"
)

// waitMax is how long the nodes of a test may take for what they do by themselves.
const waitMax = 60 * time.Second

// mesh is real nodes of one process, over libp2p on loopback, with one bucket.
type mesh struct {
	t      *testing.T
	origin string
	first  *Node
	follow []follow.Pattern // of the next node
	farm   string           // the same
	now    func() time.Time // nil is the host's clock
	opened atomic.Int64     // times that an origin was
	terms  seed.Terms       // of seeds
}

// start runs a node in a folder until stop is called, or the test ends.
func (m *mesh) start(data, name, join string) (n *Node, stop func()) {
	m.t.Helper()
	return m.startAs(trust.RoleNode, data, name, join)
}

func (m *mesh) startAs(role trust.Role, data, name, join string) (n *Node, stop func()) {
	m.t.Helper()
	n = m.build(role, data, name, join)
	return n, m.run(n)
}

// build builds a node, which is closed by being run.
func (m *mesh) build(role trust.Role, data, name, join string) *Node {
	m.t.Helper()
	n, err := New(m.t.Context(), Config{
		Dir: data, Role: role, Name: name, Join: join, Farm: cmp.Or(m.farm, "alpha"), Origins: []string{"file://" + m.origin}, Quota: 256 << 20, Terms: m.terms, Follow: m.follow,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Now: m.now, Log: slog.New(slog.DiscardHandler),
		OpenOrigin: func(ctx context.Context, _ string) (bucket.Bucket, *bucket.Metrics, error) {
			m.opened.Add(1)
			b, err := dir.Open(ctx, m.origin, slog.New(slog.DiscardHandler))
			return b, nil, err
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// run runs a node until stop is called, or the test ends.
func (m *mesh) run(n *Node) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = func() {
		if ctx.Err() == nil {
			cancel()
			if err := <-ended; err != nil {
				m.t.Error(err)
			}
		}
	}
	m.t.Cleanup(stop)
	return stop
}

func (m *mesh) token(role trust.Role) string {
	m.t.Helper()
	token, err := m.first.CreateToken(TokenRequest{Role: role})
	if err != nil {
		m.t.Fatal(err)
	}
	return token.Token
}

// await waits until something holds.
func (m *mesh) await(what string, holds func() bool) {
	m.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(waitMax)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			m.t.Fatalf("%s: not within %s", what, waitMax)
		}
	}
}

// publish stores an image of one chunk under a name.
func publish(t *testing.T, n *Node, name string) {
	t.Helper()
	publishAt(t, n, n.origin.records().Bucket(), name)
}

func publishAt(t *testing.T, n *Node, store bucket.Bucket, name string) {
	t.Helper()
	b, err := build.New(t.Context(), build.Config{Bucket: store, Scope: content.Mesh(), Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	chunk := make([]byte, content.ChunkSizeDefault)
	chunk[0] = 1
	if err = b.Add(t.Context(), 0, chunk); err != nil {
		t.Fatal(err)
	}
	head, stats, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.Image{Head: head, Chunks: stats.Chunks, Stored: stats.StoredBytes}.Encode(n.codec)
	if err == nil {
		_, err = n.Names.Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: name, Body: body})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (n *Node) linked(other *Node) bool {
	return slices.ContainsFunc(n.swarm.Peers(), func(p peer.AddrInfo) bool { return p.ID == other.swarm.ID() })
}

func (n *Node) hasRevoked(other *Node) bool {
	_, ok := n.verifier.Revoked(other.identity.Public())
	return ok
}

// TestRevokedMemberIsCut has a publisher revoked that is connected with real nodes: all
// learn of it, its connections end, what it signs is refused and what it signed before
// stays; one that was away learns on contact, and the bucket can't make it unheard.
func TestRevokedMemberIsCut(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	bad, _ := m.start(t.TempDir(), "bad", m.token(trust.RolePublisher))
	lateDir := t.TempDir()
	late, stopLate := m.start(lateDir, "late", m.token(trust.RoleNode))
	witness, _ := m.start(t.TempDir(), "witness", m.token(trust.RoleNode))
	for _, n := range []*Node{bad, late, witness} {
		m.await("connected", func() bool { return m.first.linked(n) })
	}
	m.await("it is met", func() bool {
		return stateOf(m.first.Membership.Members(t.Context()), "bad") == membership.StateConnected
	})
	stopLate()
	publish(t, bad, "before")
	if _, err := m.first.Names.Lookup(t.Context(), content.KindImage, "before", true); err != nil {
		t.Fatal(err)
	}
	r, err := m.first.Membership.Revoke(t.Context(), "bad", false)
	if err != nil || r.Member.ID != bad.swarm.ID().String() {
		t.Fatalf("%+v, %v", r, err)
	}
	m.await("the witness knows", func() bool { return witness.hasRevoked(bad) })
	m.await("connections end", func() bool { return !m.first.linked(bad) && !bad.linked(m.first) })
	if _, err := bad.exchange.Call(t.Context(), m.first.swarm.ID(), resolveMethod, nil); err == nil {
		t.Error("the revoked is answered")
	}
	sealed, err := bad.signer.Seal(trust.Envelope{Kind: content.KindImage, Name: "after", Version: 1, SignedAt: time.Now().Add(-time.Hour), Commit: trust.NewCommit()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.first.verifier.Open(sealed, time.Now(), time.Now()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("what it signs now, with another time: %v", err)
	}
	if _, ok := m.first.Names.Held(content.KindImage, "before"); !ok {
		t.Error("what it signed before is gone")
	}
	stored := filepath.Join(m.origin, "records", string(content.KindRevocation), bad.identity.Public().String())
	m.await("the origin has it", func() bool { _, err := os.Stat(stored); return err == nil })
	if err := os.Remove(stored); err != nil { // who can write to the bucket
		t.Fatal(err)
	}
	late, _ = m.start(lateDir, "late", "")
	m.await("who was away knows", func() bool { return late.hasRevoked(bad) })
	m.await("it shows", func() bool { return stateOf(late.Membership.Members(t.Context()), "bad") == membership.StateRevoked })
}

func stateOf(all []membership.Member, name string) membership.MemberState {
	for _, x := range all {
		if x.Name == name {
			return x.State
		}
	}
	return ""
}

// TestRevocationAtTheOrigin is read by a node that meets no member.
func TestRevocationAtTheOrigin(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	var stop func()
	m.first, stop = m.start(t.TempDir(), "first", "")
	data := t.TempDir()
	lone, stopLone := m.start(data, "lone", m.token(trust.RoleNode))
	m.await("connected", func() bool { return m.first.linked(lone) })
	stopLone()
	gone := trust.NewPrivateKey().Public()
	if _, err := m.first.Membership.Revoke(t.Context(), gone.String(), false); err != nil {
		t.Fatal(err)
	}
	m.await("the origin has it", func() bool {
		_, err := m.first.origin.records().Get(t.Context(), content.KindRevocation, gone.String())
		return err == nil
	})
	stop()
	lone, _ = m.start(data, "lone", "")
	m.await("it knows", func() bool { _, ok := lone.verifier.Revoked(gone); return ok })
}

// TestRotationAmongNodes: the announce secret changes with the node running.
func TestRotationAmongNodes(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	n, _ := m.start(t.TempDir(), "second", m.token(trust.RoleNode))
	m.await("connected", func() bool { return m.first.linked(n) })
	old := n.Membership.Announce(content.Mesh())
	if g, err := m.first.Membership.Rotate(t.Context()); err != nil || g.Number != 2 {
		t.Fatalf("generation %d, %v", g, err)
	}
	m.await("it has the new secrets", func() bool { return n.Membership.State().Secrets.Generation.Number == 2 })
	if now := n.Membership.Announce(content.Mesh()); len(now) != 2 || now[0] == old[0] || now[1] != old[0] || now[0] != m.first.Membership.Announce(content.Mesh())[0] {
		t.Error("roots are not announced under the new secret, or not looked for under the old one")
	}
}

// TestVolumesAreServedByAnyClock: one that starts in 1970, or after each certificate has
// expired, has this node's own volumes served, and its members dealt with again once it
// is right.
func TestVolumesAreServedByAnyClock(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	var stop func()
	data := t.TempDir()
	m.first, stop = m.start(data, "first", "")
	publish(t, m.first, "image")
	for name, spec := range map[string]terms.Spec{"blank": {Size: 1 << 20}, "disk": {From: content.Ref{Kind: content.KindImage, Name: "image"}}} {
		if _, _, err := m.first.Volumes.Put(t.Context(), name, spec); err != nil {
			t.Fatal(err)
		}
	}
	for _, off := range []time.Duration{-time.Since(time.Unix(100, 0)), 20 * 365 * 24 * time.Hour, 0} {
		stop()
		m.now = func() time.Time { return time.Now().Add(off) }
		m.first, stop = m.start(data, "first", "")
		m.await(fmt.Sprintf("volumes by a clock that is %s off", off), func() bool {
			all := m.first.Volumes.List()
			return len(all) == 2 && !slices.ContainsFunc(all, func(v terms.View) bool {
				return v.State != terms.StateAttached && v.State != terms.StateUncommitted
			})
		})
	}
	if _, err := m.first.verifier.Verify(m.first.Membership.State().Chain, time.Now()); err != nil {
		t.Error(err)
	}
}

// TestLeases: what a node reads beside who writes it stays at the origin though its names go, until the node reads it no
// more; also where the node was away in between.
func TestLeases(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	publish(t, m.first, "image")
	if _, _, err := m.first.Volumes.Put(t.Context(), "disk", terms.Spec{From: content.Ref{Kind: content.KindImage, Name: "image"}, Transport: terms.NBD}); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	reader, stop := m.start(data, "reader", m.token(trust.RoleNode))
	m.await("it is read", func() bool {
		_, _, err := reader.Volumes.Put(t.Context(), "disk", terms.Spec{ReadOnly: true, Transport: terms.NBD})
		return err == nil
	})
	leases := func() (out []catalog.Lease) {
		for r := range m.first.origin.records().List(t.Context(), content.KindLease, "", "") {
			if body, err := catalog.DecodeLease(m.first.codec, r.Body); err == nil && !r.Tombstone {
				out = append(out, body)
			}
		}
		return out
	}
	held := func() bool {
		all := leases()
		return len(all) == 1 && all[0].What == "volume disk" && all[0].Head != nil && all[0].Holder == reader.identity.Public()
	}
	m.await("there is a lease", held)
	if err := m.first.Volumes.Remove(t.Context(), "disk", terms.RemoveSpec{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.first.Images.Remove(t.Context(), "image"); err != nil {
		t.Fatal(err)
	}
	stop()
	reader, _ = m.start(data, "reader", "")
	m.await("it reads on", func() bool {
		v, err := reader.Volumes.Get("disk")
		return err == nil && v.State == terms.StateReading
	})
	if !held() {
		t.Errorf("leases after a start: %+v", leases())
	}
	if _, err := reader.Volumes.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	m.await("the lease is gone", func() bool { return len(leases()) == 0 })
}

// TestWhatIsMadeOfWhatIsGone: a volume, a snapshot and a tag of what was collected leave no record, and say what to do; also
// where the collection has only just condemned it.
func TestWhatIsMadeOfWhatIsGone(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	publish(t, m.first, "image")
	from := terms.Spec{From: content.Ref{Kind: content.KindImage, Name: "image"}, Transport: terms.NBD}
	if _, _, err := m.first.Volumes.Put(t.Context(), "disk", from); err != nil {
		t.Fatal(err)
	}
	store := m.first.origin.records().Bucket()
	keys := swept.Packs(t, store)
	refused := func(when string) {
		t.Helper()
		_, _, volume := m.first.Volumes.Put(t.Context(), "other", from)
		_, snapshot := m.first.Volumes.Snapshot(t.Context(), "disk", terms.SnapshotSpec{Wait: terms.Durable})
		_, tag := m.first.Images.Tag(t.Context(), "image", "stable")
		for what, err := range map[string]error{"volume": volume, "snapshot": snapshot, "tag": tag} {
			if !errors.Is(err, content.Gone) || !strings.Contains(err.Error(), "import anew") {
				t.Errorf("%s, %s: %v", when, what, err)
			}
		}
		if all := m.first.Volumes.List(); len(all) != 1 || all[0].Name != "disk" {
			t.Errorf("%s: %+v", when, all)
		}
		for _, kind := range []content.Kind{content.KindVolume, content.KindImage, content.KindSnapshot} {
			for r, err := range m.first.origin.records().List(t.Context(), kind, "", "") {
				if err != nil || !r.Tombstone && r.Name != "disk" && r.Name != "image" {
					t.Errorf("%s: there is %s %q, %v", when, kind, r.Name, err)
				}
			}
		}
	}
	batch := swept.Tombstone(t, store, true, keys...)
	refused("condemned")
	for _, key := range append(keys, batch) {
		if err := store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	refused("collected")
}
