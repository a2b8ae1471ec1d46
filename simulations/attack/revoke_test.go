package attack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
)

// outcast is a member that was revoked, and goes on with its key and certificate.
type outcast struct {
	*hostile
	signer trust.Signer
	root   content.CID // of an image of scope mesh
}

// staysOut fails for each thing that nodes let the outcast do.
func (o outcast) staysOut(t *testing.T, when string, nodes ...*lab.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	for k, n := range nodes {
		info := infoOf(t, n)
		if o.Connect(ctx, info) != nil {
			continue // it is not even let in
		}
		if _, err := o.exchange.Call(ctx, info.ID, "resolve", resolveBody(content.KindImage, "before")); err == nil {
			t.Errorf("%s: %s answers the outcast", when, n.Name)
		}
		if got := o.wants(ctx, o.signer, info.ID, wire.Want{Root: o.root, Indexes: []uint64{0, 1}, Priority: wire.PriorityGuest}); len(got) > 0 {
			t.Errorf("%s: %s sends the outcast content of the mesh", when, n.Name)
		}
		h := claim(content.Mesh(), imageSize, content.Sum([]byte("x")), content.Sum([]byte("y")))
		body, err := content.NewCodec().Marshal(commitBody{Sealed: imageRecord(t, o.signer, fmt.Sprintf("late%d", k), h)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.exchange.Call(ctx, info.ID, "commit", body); err == nil {
			t.Errorf("%s: %s commits for the outcast", when, n.Name)
		}
	}
}

// TestRevokedMemberIsOut: who was revoked is cut off within seconds and stays out, also
// after restarts and after the revocation was taken out of the bucket. What it had
// published stays; what it signs after, with whatever date, is nothing.
func TestRevokedMemberIsOut(t *testing.T) {
	l := newLab(t)
	admin := start(t, l, "alpha")[0]
	traitor, err := l.StartAs(t.Context(), "publisher", "alpha", "")
	if err != nil {
		t.Fatal(err)
	}
	other := start(t, l, "beta")[0]
	d := newDisk(t, l.Dir, imageSize, 120)
	run(t, traitor, "image", "import", "before", d.path)
	run(t, other, "image", "warm", "before")
	run(t, admin, "image", "show", "before")
	id := statusOf(t, traitor).Self.ID
	signer, secrets := steal(t, traitor)
	i := look(t, admin)
	loot := i.treasureOf(t, admin, "before", d)
	forged := imageRecord(t, signer, "after", loot.head) // signed before, and shown after
	if err := traitor.Stop(); err != nil {
		t.Fatal(err)
	}
	o := outcast{i.enter(t, traitor.Host, signer, conduct{server: &staller{}}), signer, rootOf(t, loot.head)}
	o.visit(t, admin, other)
	for _, n := range []*lab.Node{admin, other} {
		if _, err := o.exchange.Call(t.Context(), infoOf(t, n).ID, "resolve", resolveBody(content.KindImage, "before")); err != nil {
			t.Fatalf("a member is refused before it was revoked: %v", err)
		}
	}
	run(t, admin, "mesh", "revoke", id)
	for _, n := range []*lab.Node{admin, other} {
		if !within(t.Context(), readTimeout, func(context.Context) bool {
			return o.Network().Connectedness(infoOf(t, n).ID) != network.Connected
		}) {
			t.Errorf("%s stays connected with the outcast", n.Name)
		}
	}
	o.staysOut(t, "at once", admin, other)
	put(t, bucketOf(admin), "records/image/after", forged)
	gossiper := gossip(t, o.hostile, "alpha", secrets.Secrets.Gossip, admin)
	never(t, "the outcast gossips on", func(ctx context.Context) bool { return listed(ctx, admin, id) })
	if err := gossiper.Shutdown(); err != nil { // its address is the traitor's again
		t.Fatal(err)
	}
	resolved(t, other, true, "before")
	resolved(t, other, false, "after")
	for _, path := range revocations(t, bucketOf(admin)) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*lab.Node{other, admin} {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	o.staysOut(t, "after restarts", admin, other)
	cold := start(t, l, "gamma")[0]
	for _, n := range []*lab.Node{other, cold} {
		resolved(t, n, true, "before")
		resolved(t, n, false, "after")
	}
	d.read(t, cold, "v", "before")
	if err := traitor.Restart(t.Context()); err != nil {
		t.Logf("the revoked node does not start: %v", err)
		return
	}
	never(t, "the revoked node is back in its farm", func(ctx context.Context) bool { return listed(ctx, admin, id) })
}

// resolved fails unless a name is known to a node, or is not.
func resolved(t *testing.T, n *lab.Node, want bool, name string) {
	t.Helper()
	var r api.Resolved
	if err := n.Get(t.Context(), "/api/resolve/"+name, &r); (err == nil) != want {
		t.Errorf("%s resolves %s: %v", n.Name, name, err)
	}
}

// revocations are the objects of a folder bucket that say who was revoked.
func revocations(t *testing.T, bucket string) (out []string) {
	t.Helper()
	for _, pattern := range []string{"*revo*/*", "records/*revo*/*", "*/*revo*"} {
		found, err := filepath.Glob(filepath.Join(bucket, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				out = append(out, path)
			}
		}
	}
	return out
}

// TestUsedTokenIsNoSecondCertificate: an invite that was used gives nothing more when it
// has expired, nor another certificate before, not even to the key that it was used for.
func TestUsedTokenIsNoSecondCertificate(t *testing.T) {
	l := newLab(t)
	admin := start(t, l, "alpha")[0]
	i := look(t, admin)
	text := run(t, admin, "token", "create", "--role", "node", "--farm", "beta", "--lifetime", "4s")
	signer := stranger()
	h := i.enter(t, outside(t, l), signer, conduct{})
	h.visit(t, admin)
	redeem := func() (trust.Chain, error) {
		b, err := h.exchange.Call(t.Context(), infoOf(t, admin).ID, "redeem", redeemBody(t, text, signer.Key.Public()))
		if err != nil {
			return nil, err
		}
		return redeemed(b)
	}
	first, err := redeem()
	if err != nil {
		t.Fatal(err)
	}
	again := func(when string, second trust.Chain, err error) {
		t.Logf("%s: %v", when, err)
		if err == nil && second[0].Serial != first[0].Serial {
			t.Errorf("%s: one token has given two certificates", when)
		}
	}
	second, err := redeem()
	again("before it expires", second, err)
	expired := within(t.Context(), readTimeout, func(ctx context.Context) bool {
		var tokens []api.Token
		if err := admin.Get(ctx, "/api/tokens", &tokens); err != nil || len(tokens) != 1 {
			return false
		}
		return time.Now().After(tokens[0].Expires)
	})
	second, err = redeem()
	again(fmt.Sprintf("after it expired (%v)", expired), second, err)
}

// TestTokenCarriesNoSecret: who finds a token that was used has no key of the mesh.
func TestTokenCarriesNoSecret(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha")
	for _, role := range []string{"node", "publisher", "admin", "seed"} {
		text := run(t, nodes[0], "token", "create", "--role", role)
		for _, n := range nodes {
			for what, secret := range secretsIn(t, n) {
				if bytes.Contains(tokenBytes(t, text), secret) {
					t.Errorf("a token of role %s carries %s of %s", role, what, n.Name)
				}
			}
		}
	}
}

// TestTokenIsNotInPs: other users of a host don't see the token that a node joined with.
func TestTokenIsNotInPs(t *testing.T) {
	l := newLab(t)
	start(t, l, "alpha")
	token := run(t, l.Nodes()[0], "token", "create", "--role", "node", "--farm", "beta")
	n, err := l.Start(t.Context(), "beta", "", "--join", token)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte(token)) {
		t.Error("the token of a node stands in the list of processes")
	}
}

// TestAwayMembersComeBackAfterRotation: a member that was away when the mesh's secrets
// were changed is back with its certificate alone, and an admin's key that was saved
// makes another admin when the first node is lost.
func TestAwayMembersComeBackAfterRotation(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha", "beta")
	admin, away, other := nodes[0], nodes[1], nodes[2]
	id := statusOf(t, away).Self.ID
	if err := away.Stop(); err != nil {
		t.Fatal(err)
	}
	old := secretsIn(t, away)
	run(t, admin, "mesh", "rotate")
	if err := away.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the member is back in its farm", func(ctx context.Context) bool { return listed(ctx, admin, id) })
	until(t, "the member has other secrets", func(context.Context) bool {
		return fmt.Sprint(secretsIn(t, away)) != fmt.Sprint(old)
	})
	if out := run(t, other, "mesh", "members"); !strings.Contains(out, id) {
		t.Errorf("beta does not name the member: %s", out)
	}
	key := filepath.Join(l.Dir, "mesh-key")
	run(t, admin, "mesh", "export-key", key)
	if err := admin.Stop(); err != nil {
		t.Fatal(err)
	}
	run(t, other, "mesh", "import-key", key)
	run(t, other, "token", "create", "--role", "node", "--farm", "beta")
}
