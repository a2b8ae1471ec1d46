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
		thief := identity.PeerID(trust.NewPrivateKey().Public())
		body, err := admin.codec.Marshal(redeemRequest{token.Invite, owner.Public(), ""})
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
		if err := bad.call(t.Context(), member.id, greetMethod, bad.greeting([]revoked{{Sealed: sealed}}), &g); err != nil {
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
		return first.learn([]claim{{sealed: sealed}})
	}
	if revoke(bad)+revoke(deputy) != 2 {
		t.Fatal("an admin can't revoke")
	}
	good, err := first.Signer().RevokeKey(trust.NewPrivateKey().Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for first.spent[bad.key.Public()] < revokedByMax { // as if it were told of one after the other
		next++
		first.Membership.revoked[trust.PublicKey(fmt.Appendf(nil, "%032d", next))] = revoked{Sealed: good}
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
		chain, err := bad.Signer().Issue(trust.Identity{Key: puppet.Public(), Role: trust.RoleAdmin, Farm: "beta"}, time.Now())
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

// TestWhoMeetsTheRevokedFirst: an admin that was revoked tells a member, which was away,
// that the one that revoked it was. Once the member meets another it is put right.
func TestWhoMeetsTheRevokedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		second := w.join(first, "second", trust.RoleAdmin, "alpha")
		bad := w.join(first, "bad", trust.RoleAdmin, "beta")
		other := w.join(first, "other", trust.RoleNode, "beta")
		late := w.join(first, "late", trust.RoleNode, "beta")
		defer w.stop()
		w.run(first, second, other, late)
		settle(3 * time.Minute)
		w.away(late, true)
		w.away(bad, true) // it is told of nothing either
		settle(time.Minute)
		if _, err := first.Revoke(t.Context(), "bad", false); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		told := []revoked{}
		for _, n := range []*node{first, second} {
			sealed, err := bad.Signer().RevokeKey(n.key.Public(), time.Now().Add(-2*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, revoked{Sealed: sealed, Learnt: time.Now().Add(-2 * time.Minute).UnixNano()})
		}
		for _, n := range []*node{first, second, other} {
			w.away(n, true)
		}
		w.away(late, false)
		w.away(bad, false)
		var g greeting
		if err := bad.call(t.Context(), late.id, greetMethod, bad.greeting(told), &g); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if !late.knows(first) || !late.knows(second) {
			t.Fatal("who knows no better does not believe an admin")
		}
		w.away(other, false)
		settle(time.Minute)
		if !late.knows(bad) || late.knows(first) || late.knows(second) || len(late.Membership.revoked) != 1 {
			t.Errorf("it knows that bad is revoked: %t; and believes still that first is: %t, second: %t", late.knows(bad), late.knows(first), late.knows(second))
		}
		if other.knows(first) || other.knows(second) {
			t.Error("and those that knew better were told")
		}
		if late = w.restart(late); !late.knows(bad) || late.knows(first) || late.knows(second) {
			t.Error("forgotten by a restart")
		}
		if n := late.spent[bad.key.Public()]; n != 0 {
			t.Errorf("%d revocations are booked on it", n)
		}
	})
}

// TestTheMeshKeyHasTheLastWord: a member that believes an admin gone bad, and so none of
// those that it revoked, believes the mesh key.
func TestTheMeshKeyHasTheLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		good, bad := w.join(first, "good", trust.RoleAdmin, "alpha"), w.join(first, "bad", trust.RoleAdmin, "beta")
		left, right := w.join(first, "left", trust.RoleNode, "beta"), w.join(first, "right", trust.RoleNode, "beta")
		defer w.stop()
		w.run(first, left, right)
		settle(3 * time.Minute)
		revokes := func(at, by, whom *node) {
			t.Helper()
			sealed, err := by.Signer().RevokeKey(whom.key.Public(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if at.learn([]claim{{sealed: sealed}}) != 1 {
				t.Fatal("an admin can't revoke")
			}
		}
		for _, n := range []*node{good, bad, right} {
			w.away(n, true)
		}
		revokes(left, good, bad)
		revokes(right, bad, good)
		revokes(right, bad, first)
		settle(time.Minute)
		w.away(right, false)
		settle(time.Minute)
		if !first.knows(bad) || right.knows(bad) || first.knows(good) {
			t.Fatal("one side convinces the other by what the other has no reason to believe")
		}
		if _, err := first.Revoke(t.Context(), bad.id.String(), false); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if !right.knows(bad) {
			t.Error("the mesh key is not believed")
		}
		if first.spent[good.key.Public()] != 0 || len(first.Membership.revoked) != 1 {
			t.Errorf("one revocation is booked twice: %v", first.spent)
		}
	})
}

// TestWhomARevokedAdminHadRevoked stays out, for those that come later too: who revoked
// the admin stands for it.
func TestWhomARevokedAdminHadRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.found("first", "alpha")
		second, deputy := w.join(first, "second", trust.RoleAdmin, "alpha"), w.join(first, "deputy", trust.RoleAdmin, "beta")
		thief := w.join(first, "thief", trust.RoleNode, "beta")
		member, late := w.join(first, "member", trust.RoleNode, "beta"), w.join(first, "late", trust.RoleNode, "beta")
		defer w.stop()
		w.away(thief, true)
		w.run(second, deputy, member, late)
		settle(3 * time.Minute)
		w.away(late, true)
		if _, err := deputy.Revoke(t.Context(), thief.id.String(), false); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if _, err := second.Revoke(t.Context(), deputy.id.String(), false); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		w.away(deputy, true)
		w.away(second, true)
		w.away(late, false)
		settle(time.Minute)
		if !late.knows(deputy) || !late.knows(thief) {
			t.Errorf("who was away knows of the deputy: %t, of whom the deputy had revoked: %t", late.knows(deputy), late.knows(thief))
		}
	})
}
