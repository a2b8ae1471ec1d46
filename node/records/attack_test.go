package records

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestOneMemberKeepsItConfirmed: what three farms have confirmed once, one alone does not
// keep confirmed by saying that it sees it still.
func TestOneMemberKeepsItConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
		r := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
		w.away.Store(true)
		for _, farm := range []string{"x", "y", "z"} {
			m.says(vouched(t, w.signer(t, trust.RoleNode, farm), r, time.Now()))
		}
		want(t, "three farms", m.lookup(t, content.KindImage, "debian"), 1, true)
		liar := w.signer(t, trust.RoleNode, "x")
		m.asked = []func(context.Context, Question) (Answer, error){func(context.Context, Question) (Answer, error) {
			return vouched(t, liar, r, time.Now()), nil
		}}
		for range 8 {
			pause(t, 30*time.Second)
			m.lookup(t, content.KindImage, "debian")
		}
		k := m.lookup(t, content.KindImage, "debian")
		want(t, "one alone, minutes later", k, 1, false)
		if age := m.Age(k); age > time.Second {
			t.Errorf("it was seen just now, and is %s old", age)
		}
	})
}

// TestAPrivateNameByItsTime: a member of another farm that has a name looked for learns
// nothing by how long that takes, be the name known here, at the origin, or nowhere.
func TestAPrivateNameByItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RoleNode, "alpha")
		slow := w.member(t, t.TempDir(), trust.RoleNode, "alpha")
		m.asked = append(m.asked, func(ctx context.Context, q Question) (Answer, error) { // nobody answers
			<-ctx.Done()
			return Answer{}, ctx.Err()
		})
		w.publish(t, slow.signer, w.volume(t, "held", "alpha", 1))
		w.publish(t, slow.signer, w.volume(t, "there", "alpha", 2))
		m.lookup(t, content.KindVolume, "held")
		pause(t, 10*freshFor)
		beta := trust.Identity{Key: trust.NewPrivateKey().Public(), Role: trust.RoleNode, Farm: "beta"}
		took := map[time.Duration][]string{}
		for _, name := range []string{"held", "there", "nowhere"} {
			for _, version := range []uint64{1, 2, 1 << 60} {
				begun := time.Now()
				_, err := m.Answer(t.Context(), beta, Question{Kind: content.KindVolume, Name: name, Version: version})
				is(t, name, err, content.ErrNotFound)
				took[time.Since(begun)] = append(took[time.Since(begun)], name)
			}
		}
		if len(took) != 1 {
			t.Errorf("%v", took)
		}
	})
}

// TestARevokedPublisherAndAFriend: a record that a publisher signs after its revocation
// is not believed because one member says that it saw it before; one that it signed
// before is, where members of enough farms do.
func TestARevokedPublisherAndAFriend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
		friend := w.signer(t, trust.RoleNode, "b")
		r := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
		seen := time.Now()
		pause(t, time.Minute)
		w.verifier.Revoke(map[trust.PublicKey]time.Time{publisher.Key.Public(): time.Now()})
		pause(t, time.Minute)
		next := w.sealed(t, publisher, w.image(t, "debian", content.Mesh(), 2), 2)
		w.away.Store(true)
		m.says(vouched(t, friend, next.Record, seen))
		if k, err := m.Lookup(t.Context(), content.KindImage, "debian", true); err == nil {
			t.Errorf("version %d of a revoked publisher, on one member's word", k.Version)
		}
		for _, farm := range []string{"x", "y", "z"} {
			m.says(vouched(t, w.signer(t, trust.RoleNode, farm), r, seen))
		}
		want(t, "what it signed before", m.lookup(t, content.KindImage, "debian"), 1, false)
	})
}

// TestARecordIsTakenAwayAndPutBackOlder, as who has the credentials of the bucket can: it
// is not confirmed, by a restart neither.
func TestARecordIsTakenAwayAndPutBackOlder(t *testing.T) {
	w := newWorld(t)
	m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
	old := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
	w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
	want(t, "at first", m.lookup(t, content.KindImage, "debian"), 2, true)
	if err := w.store.Delete(t.Context(), "records/"+key(content.KindImage, "debian")); err != nil {
		t.Fatal(err)
	}
	_, err := m.Lookup(t.Context(), content.KindImage, "debian", true)
	is(t, "taken away", err, content.ErrNotFound)
	w.put(t, content.KindImage, "debian", old.Sealed)
	if k, err := m.Lookup(t.Context(), content.KindImage, "debian", true); err == nil && k.Confirmed {
		t.Errorf("put back at version %d", k.Version)
	}
	m.restart(t)
	if k, err := m.Lookup(t.Context(), content.KindImage, "debian", true); err == nil && k.Confirmed {
		t.Errorf("put back at version %d, after a restart", k.Version)
	}
}
