package trust

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// TestRevocationsCountByWhenTheyWereLearnt draws signers of any role, revocations of
// them and of their issuers, and times: what was seen before is believed, and what was
// signed under a certificate that was known before.
func TestRevocationsCountByWhenTheyWereLearnt(t *testing.T) {
	w := newWorld(t)
	delegate := w.member(t, w.founder, RoleAdmin, "a")
	signers := map[string]Signer{"founder": w.founder, "delegate": delegate, "its publisher": w.member(t, delegate, RolePublisher, "a"), "the founder's publisher": w.member(t, w.founder, RolePublisher, "a")}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"founder", "delegate", "its publisher", "the founder's publisher"}).Draw(t, "signer")
		s := signers[name]
		at := func(label string) time.Time {
			return epoch().Add(time.Duration(rapid.IntRange(0, 100).Draw(t, label)) * time.Second)
		}
		seen, now := at("seen"), epoch().Add(200*time.Second)
		v := NewVerifier(w.mesh.Public())
		learnt := map[PublicKey]time.Time{}
		known := time.Time{}
		if rapid.Bool().Draw(t, "met") {
			known = at("met at")
			v.Remember(func(c Certificate) (time.Time, bool) { return known, c.Sum() == s.Chain[0].Sum() }, func(PublicKey) Chain { return nil })
		}
		for _, c := range s.Chain {
			if rapid.Bool().Draw(t, "revoked") {
				learnt[c.Subject] = at("learnt")
			}
		}
		v.Revoke(learnt)
		want := true
		for i, c := range s.Chain {
			since, revoked := learnt[c.Subject]
			by := seen
			if i > 0 && !known.IsZero() && known.Before(seen) {
				by = known
			}
			want = want && (!revoked || by.Before(since))
		}
		b, err := s.Seal(Envelope{Kind: content.KindImage, Name: "debian", Version: 1, SignedAt: epoch()}) // it says the earliest
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Open(b, seen, now); (err == nil) != want {
			t.Errorf("%s: %v, want it believed: %t", name, err, want)
		}
		if _, err := v.Certified(s.Chain, now); err != nil {
			t.Errorf("%s was a member: %v", name, err)
		}
	})
}

func TestRevocation(t *testing.T) {
	w := newWorld(t)
	key := NewPrivateKey().Public()
	good, err := w.founder.RevokeKey(key, epoch())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.verifier.OpenRevocation(good, epoch(), epoch()); err != nil || r.Key != key {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := w.member(t, w.founder, RolePublisher, "a").RevokeKey(key, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a publisher revokes: %v", err)
	}
	mesh, err := w.founder.RevokeKey(w.mesh.Public(), epoch())
	if err != nil {
		t.Fatal(err)
	}
	image, err := w.founder.Seal(Envelope{Kind: content.KindImage, Name: key.String(), Version: 1, SignedAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"of the mesh key": mesh, "an image": image, "cut": good[:len(good)-1], "nothing": nil} {
		if _, err := w.verifier.OpenRevocation(b, epoch(), epoch()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	// a revoked admin revokes nobody any more, whatever time it writes
	w.verifier.Revoke(map[PublicKey]time.Time{w.founder.Key.Public(): epoch().Add(time.Hour)})
	for seen, ok := range map[time.Duration]bool{0: true, time.Hour: false, 2 * time.Hour: false} {
		if _, err := w.verifier.OpenRevocation(good, epoch().Add(seen), epoch().Add(3*time.Hour)); (err == nil) != ok {
			t.Errorf("seen after %s: %v", seen, err)
		}
	}
}
