package membership

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
)

// TestAUsedTokenForItsOwner: who finds a token right after its use, and knows whose it
// was, is not sent the secrets that the owner may ask for again.
func TestAUsedTokenForItsOwner(t *testing.T) {
	w := newWorld(t)
	admin := w.found("first", "alpha")
	for _, role := range []trust.Role{trust.RoleNode, trust.RoleAdmin} {
		token, _, err := admin.CreateToken(role, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		owner := trust.NewPrivateKey()
		if _, err := w.redeem(admin, token, owner, "owner"); err != nil {
			t.Fatal(err)
		}
		thief, err := identity.PeerID(trust.NewPrivateKey().Public())
		if err != nil {
			t.Fatal(err)
		}
		body, err := admin.codec.Marshal(redeemRequest{token.Invite, owner.Public()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Membership.Call(t.Context(), exchange.Peer{ID: thief}, redeemMethod, body); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("the token of a %s, shown for its owner by another: %v", role, err)
		}
		if _, err := w.redeem(admin, token, owner, "owner"); err != nil {
			t.Errorf("the owner asks again: %v", err)
		}
	}
}

// TestABackdatedRevocation: an admin gone bad revokes a publisher as of long ago. Who
// was here all the time knows since when: what the publisher signed before stays.
func TestABackdatedRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		bad := w.join(first, "bad", trust.RoleAdmin, "beta")
		publisher := w.join(first, "publisher", trust.RolePublisher, "alpha")
		member := w.join(first, "member", trust.RoleNode, "alpha")
		defer w.stop()
		w.run(first, publisher, member)
		settle(3 * time.Minute)
		before, err := publisher.Signer().Seal(trust.Envelope{Kind: content.KindImage, Name: "before", Version: 1, SignedAt: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		seen := time.Now()
		settle(3 * time.Minute)
		sealed, err := bad.Signer().RevokeKey(publisher.key.Public(), time.Now().Add(-5*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		var g greeting
		if err := bad.call(t.Context(), member.id, greetMethod, bad.greeting([]revoked{{sealed, 0}}), &g); err != nil {
			t.Fatal(err)
		}
		settle(3 * time.Second)
		for _, n := range []*node{member, first} {
			if !n.knows(publisher) {
				t.Fatal("the revocation was not taken")
			}
			if _, err := n.verifier.Open(before, seen, time.Now()); err != nil {
				t.Errorf("%s was here when it was signed: %v", n.cfg.Name, err)
			}
		}
	})
}

// TestAnAdminFillsTheRevocations: it is revoked all the same.
func TestAnAdminFillsTheRevocations(t *testing.T) {
	w := newWorld(t)
	first := w.found("first", "alpha")
	bad := w.join(first, "bad", trust.RoleAdmin, "beta")
	deputy := w.join(bad, "deputy", trust.RoleAdmin, "beta")
	next := 0
	revoke := func(n *node) int {
		next++
		sealed, err := n.Signer().RevokeKey(trust.PublicKey(fmt.Appendf(nil, "%032d", next)), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return first.learn([]told{{sealed: sealed}})
	}
	if revoke(bad)+revoke(deputy) != 2 {
		t.Fatal("an admin can't revoke")
	}
	for first.spent[bad.key.Public()] < revokedByMax { // as if it were told of one after the other
		next++
		first.Membership.revoked[trust.PublicKey(fmt.Appendf(nil, "%032d", next))] = revoked{}
		first.spent[bad.key.Public()]++
	}
	if revoke(bad)+revoke(deputy) != 0 {
		t.Error("one admin, with its deputy, uses up what others may need")
	}
	if _, err := first.Revoke(t.Context(), bad.id.String(), false); err != nil || !first.knows(bad) {
		t.Errorf("%v", err)
	}
}

// TestARevokedAdminVouchesForItsOwn: while it is being revoked it is asked whom it has
// met, and names members that it has just made, which nobody else has seen.
func TestARevokedAdminVouchesForItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		bad := w.join(first, "bad", trust.RoleAdmin, "beta")
		honest := w.join(bad, "honest", trust.RoleNode, "beta")
		defer w.stop()
		w.run(first, bad, honest)
		settle(5 * time.Second)
		puppet := trust.NewPrivateKey()
		chain, err := bad.Signer().Issue(trust.Grant{Subject: puppet.Public(), Role: trust.RoleAdmin, Farm: "beta"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		bad.roll.proved(chain, "puppet", time.Now())
		first.Members(t.Context()) // a call takes no time here, and then it is the same moment as what follows
		settle(time.Second)
		if _, err := first.Revoke(t.Context(), bad.id.String(), false); err != nil {
			t.Fatal(err)
		}
		settle(30 * time.Second)
		if _, err := first.verifier.Verify(chain, time.Now()); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("whom it made for the occasion is a member: %v", err)
		}
		if id, err := first.verifier.Verify(honest.State().Chain, time.Now()); err != nil || id.Key != honest.key.Public() {
			t.Errorf("whom it had brought in honestly: %v", err)
		}
	})
}
