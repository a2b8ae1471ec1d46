package records

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestALargeVersionOfAnotherFarm: beta has a record of gamma's volume with the largest
// version there is. It is nothing by hearsay, nothing in the bucket, and nothing after a
// restart.
func TestALargeVersionOfAnotherFarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RoleNode, "gamma")
		beta := w.signer(t, trust.RoleNode, "beta")
		w.publish(t, m.signer, w.volume(t, "v", "gamma", 1))
		want(t, "at first", m.lookup(t, content.KindVolume, "v"), 1, true)
		for _, version := range []uint64{2, catalog.VersionMax, 1<<64 - 2} {
			foreign := w.sealed(t, beta, w.volume(t, "v", "beta", 2), version)
			m.says(vouched(t, beta, foreign.Record, time.Now()))
		}
		pause(t, 2*freshFor)
		w.away.Store(true)
		m.lookup(t, content.KindVolume, "v")
		m.restart(t)
		want(t, "by hearsay, after a restart", m.lookup(t, content.KindVolume, "v"), 1, false)
		w.away.Store(false)
		want(t, "the origin is back", m.lookup(t, content.KindVolume, "v"), 1, true)

		w.put(t, content.KindVolume, "v", w.sealed(t, beta, w.volume(t, "v", "beta", 3), 7).Sealed)
		m.restart(t)
		k := m.lookup(t, content.KindVolume, "v")
		want(t, "in the bucket", k, 1, false)
		if k.Doubt == "" || k.Farm != "gamma" {
			t.Errorf("the record of farm %q, and nothing is said", k.Farm)
		}
		w.put(t, content.KindVolume, "w", w.sealed(t, beta, w.volume(t, "w", "beta", 3), 1<<64-2).Sealed)
		_, err := m.Lookup(t.Context(), content.KindVolume, "w", true)
		is(t, "a version that none can follow", err, content.ErrInvalid)
	})
}

// TestTheOriginBeatsHearsay: a larger version of the owner, signed and never written, is
// the answer while the origin is away, and no longer.
func TestTheOriginBeatsHearsay(t *testing.T) {
	w := newWorld(t)
	m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
	w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
	want(t, "at first", m.lookup(t, content.KindImage, "debian"), 1, true)
	m.says(vouched(t, publisher, w.sealed(t, publisher, w.image(t, "debian", content.Mesh(), 2), 1<<40).Record, time.Now()))
	want(t, "the origin answers", m.lookup(t, content.KindImage, "debian"), 1, true)
	w.away.Store(true)
	want(t, "the origin is away", m.lookup(t, content.KindImage, "debian"), 1<<40, false)
	m.restart(t)
	want(t, "after a restart", m.lookup(t, content.KindImage, "debian"), 1<<40, false)
	w.away.Store(false)
	want(t, "the origin is back", m.lookup(t, content.KindImage, "debian"), 1, true)
	r := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 3))
	want(t, "it moves on", m.lookup(t, content.KindImage, "debian"), r.Version, true)
}

// TestLiars: eight with an old record roll nothing back, and one does not keep the others
// from being heard. Each says that it has just seen it.
func TestLiars(t *testing.T) {
	w := newWorld(t)
	m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
	old := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
	now := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
	m.lookup(t, content.KindImage, "debian")
	for i := range 8 {
		m.says(vouched(t, w.signer(t, trust.RoleNode, fmt.Sprint("liars", i)), old, time.Now()))
	}
	w.away.Store(true)
	want(t, "a name that is known", m.lookup(t, content.KindImage, "debian"), now.Version, true) // read just now
	m.restart(t)
	m.lookup(t, content.KindImage, "debian")
	if k, _ := m.Held(content.KindImage, "debian"); k.Version != now.Version {
		t.Errorf("version %d after a restart", k.Version)
	}

	fresh := w.member(t, t.TempDir(), trust.RoleNode, "a")
	fresh.says(vouched(t, w.signer(t, trust.RoleNode, "liars"), old, time.Now()))
	fresh.says(Answer{Sealed: []byte("junk"), Statement: []byte("junk")})
	for i := range 2 {
		fresh.says(vouched(t, w.signer(t, trust.RoleNode, fmt.Sprint("honest", i)), now, time.Now()))
	}
	want(t, "a liar among others", fresh.lookup(t, content.KindImage, "debian"), now.Version, false)
	fresh.says(vouched(t, w.signer(t, trust.RoleNode, "honest2"), now, time.Now()))
	want(t, "three farms", fresh.lookup(t, content.KindImage, "debian"), now.Version, true)
}

// TestWhatConfirms: members of three farms that have just seen it; not of one farm, not
// long ago, not by a seed or a stranger's word, not in time to come.
func TestWhatConfirms(t *testing.T) {
	w := newWorld(t)
	publisher := w.signer(t, trust.RolePublisher, "b")
	r := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
	w.away.Store(true)
	now := time.Now()
	revoked := w.signer(t, trust.RoleNode, "z")
	w.verifier.Revoke(map[trust.PublicKey]time.Time{revoked.Key.Public(): now})
	node := func(farm string) trust.Signer { return w.signer(t, trust.RoleNode, farm) }
	two := []Answer{vouched(t, node("x"), r, now), vouched(t, node("y"), r, now)}
	for what, tt := range map[string]struct {
		third     Answer
		confirmed bool
		age       time.Duration // at most
	}{
		"another farm":          {vouched(t, node("z"), r, now), true, time.Minute},
		"the same farm":         {vouched(t, node("y"), r, now), false, time.Minute},
		"long ago":              {vouched(t, node("z"), r, now.Add(-time.Hour)), false, time.Minute},
		"a seed":                {vouched(t, w.signer(t, trust.RoleSeed, ""), r, now), false, time.Minute},
		"one that was revoked":  {vouched(t, revoked, r, now), false, time.Minute},
		"within the skew":       {vouched(t, node("z"), r, now.Add(4*time.Minute)), true, time.Minute},
		"in time to come":       {vouched(t, node("z"), r, now.Add(6*time.Minute)), false, time.Minute},
		"without a word":        {Answer{Sealed: r.Sealed}, false, time.Minute},
		"a word on another one": {Answer{Sealed: r.Sealed, Statement: vouched(t, node("z"), w.sealed(t, publisher, w.image(t, "debian", content.Mesh(), 1), 1).Record, now).Statement}, false, time.Minute},
	} {
		m := w.member(t, t.TempDir(), trust.RoleNode, "a")
		for _, a := range append(two[:2:2], tt.third) {
			m.says(a)
		}
		k := m.lookup(t, content.KindImage, "debian")
		want(t, what, k, 1, tt.confirmed)
		if age := m.Age(k); age < 0 || age > tt.age {
			t.Errorf("%s: age %s", what, age)
		}
	}
	m := w.member(t, t.TempDir(), trust.RoleNode, "a")
	m.says(vouched(t, node("z"), r, now.Add(6*time.Minute)))
	m.says(Answer{Sealed: r.Sealed})
	_, err := m.Lookup(t.Context(), content.KindImage, "debian", true)
	is(t, "nobody's word", err, content.ErrUnavailable)
}

// TestHearsayIsPassedOnAsThat: who heard a record says who saw it, and not that it did.
func TestHearsayIsPassedOnAsThat(t *testing.T) {
	w := newWorld(t)
	r := w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
	w.away.Store(true)
	first := w.signer(t, trust.RoleNode, "x")
	var between []*member
	for i := range 4 {
		m := w.member(t, tempDir(t, i), trust.RoleNode, fmt.Sprint("farm", i))
		m.says(vouched(t, first, r, time.Now()))
		m.lookup(t, content.KindImage, "debian")
		between = append(between, m)
	}
	m := w.member(t, t.TempDir(), trust.RoleNode, "a")
	m.asksOf(between...)
	want(t, "four who heard it of one", m.lookup(t, content.KindImage, "debian"), 1, false)
}

// TestARolledBackBucket is found out by a node that never saw the name, when a member
// has, and by one that saw it itself.
func TestARolledBackBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		publisher := w.signer(t, trust.RolePublisher, "b")
		seen := w.member(t, tempDir(t, 1), trust.RoleNode, "a")
		old := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
		w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
		seen.lookup(t, content.KindImage, "debian")
		pause(t, time.Second)
		w.put(t, content.KindImage, "debian", old.Sealed)

		alone := w.member(t, tempDir(t, 2), trust.RoleNode, "a")
		want(t, "nobody knows better", alone.lookup(t, content.KindImage, "debian"), 1, true)
		cold := w.member(t, tempDir(t, 3), trust.RolePublisher, "a")
		cold.asksOf(seen)
		for range 3 {
			k := cold.lookup(t, content.KindImage, "debian")
			want(t, "a member knows better", k, 2, false)
			if wanted := "the bucket shows version 1, and members saw version 2 there: was it rolled back?"; k.Doubt != wanted {
				t.Errorf("it says %q", k.Doubt)
			}
		}
		if n := cold.asks.Load(); n != 1 {
			t.Errorf("members were asked %d times", n)
		}
		if r, err := cold.Resolve(t.Context(), "debian", true); err != nil || r.Confirmed || r.Warning == "" {
			t.Errorf("resolved: %+v, %v", r, err)
		}
		seen.restart(t) // the catalog of before would say so itself
		want(t, "seen before", seen.lookup(t, content.KindImage, "debian"), 2, false)

		k := cold.lookup(t, content.KindImage, "debian")
		ch := w.image(t, "debian", content.Mesh(), 3) // on top of the old one, which settles it
		ch.Base = &k.Record
		if _, err := cold.Commit(t.Context(), ch); err != nil {
			t.Error(err)
		}
		want(t, "it moves on", cold.lookup(t, content.KindImage, "debian"), 2, true)
	})
}

// TestAReadThatWasOvertaken is no rollback.
func TestAReadThatWasOvertaken(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	asked := time.Now()
	old := w.publish(t, m.signer, w.image(t, "debian", content.Mesh(), 1))
	if _, err := m.Commit(t.Context(), func() catalog.Change { c := w.image(t, "debian", content.Mesh(), 2); c.Base = &old; return c }()); err != nil {
		t.Fatal(err)
	}
	if err := m.Told(old, asked); err != nil {
		t.Fatal(err)
	}
	k, _ := m.Held(content.KindImage, "debian")
	want(t, "after the late read", k, 2, true)
}

// TestAnEchoIsNotTheOrigin: a member says that it wrote what it was handed. Nobody else
// sees it there, so the writer is told, and sends the same again.
func TestAnEchoIsNotTheOrigin(t *testing.T) {
	w := newWorld(t)
	echoing := w.signer(t, trust.RoleNode, "b")
	var sent [][]byte
	echo := func(s Submission) (Answer, error) {
		sent = append(sent, s.Sealed)
		e, err := w.verifier.Open(s.Sealed, time.Now(), time.Now())
		return vouched(t, echoing, catalog.Record{Envelope: e, Sealed: s.Sealed, ETag: `"x"`}, time.Now()), err
	}
	honest := w.member(t, tempDir(t, 1), trust.RoleNode, "c")
	m := w.member(t, tempDir(t, 2), trust.RoleNode, "a")
	m.origin, m.submit = nil, echo
	m.asked = append(m.asked, func(_ context.Context, q Question) (Answer, error) { // the liar says it again
		k, _ := m.Held(q.Kind, q.Name)
		return vouched(t, echoing, k.Record, time.Now()), nil
	})
	m.asksOf(honest)
	ch := w.volume(t, "vol2", "a", 1)
	for range 2 {
		_, err := m.Commit(t.Context(), ch)
		is(t, "an echo", err, content.ErrUnavailable)
		if k, ok := m.Held(content.KindVolume, "vol2"); !ok || k.Confirmed {
			t.Errorf("held %t, confirmed %t", ok, k.Confirmed)
		}
	}
	if len(sent) != 2 || string(sent[0]) != string(sent[1]) {
		t.Errorf("%d records were sent, and not the same one", len(sent))
	}
	if n := len(w.store.Keys("records/")); n != 0 {
		t.Errorf("%d records in the bucket", n)
	}
	m.submit, m.asked = func(s Submission) (Answer, error) { return honest.CommitFor(t.Context(), m.self(), s) }, nil
	m.asksOf(honest)
	_, err := m.Commit(t.Context(), ch)
	is(t, "one who wrote it, and nobody else to ask", err, content.ErrUnavailable)
	other := w.member(t, tempDir(t, 3), trust.RoleNode, "d")
	m.asksOf(other) // which looks there when it is asked
	if r, err := m.Commit(t.Context(), ch); err != nil || r.Version != 1 || string(r.Sealed) != string(sent[0]) {
		t.Errorf("version %d, %v", r.Version, err)
	}
	if k, _ := m.Held(content.KindVolume, "vol2"); !k.Confirmed {
		t.Error("it is not confirmed")
	}
	// Where this node reads the origin itself, it is the one that tells.
	m.submit, m.asked = echo, nil
	c := w.catalog(t, m.signer, w.store)
	m.cfg.Reader = func() *catalog.Catalog { return c }
	_, err = m.Commit(t.Context(), w.volume(t, "vol3", "a", 2))
	is(t, "an echo that this node finds out", err, content.ErrUnavailable)
}

// TestAnAdminsWordIsEnough: the founder may be the only one with an origin.
func TestAnAdminsWordIsEnough(t *testing.T) {
	w := newWorld(t)
	founder := w.member(t, tempDir(t, 1), trust.RoleAdmin, "a")
	m := w.member(t, tempDir(t, 2), trust.RoleNode, "a")
	m.origin = nil
	m.submit = func(s Submission) (Answer, error) { return founder.CommitFor(t.Context(), m.self(), s) }
	if _, err := m.Commit(t.Context(), w.volume(t, "v", "a", 1)); err != nil {
		t.Fatal(err)
	}
	k, _ := m.Held(content.KindVolume, "v")
	gone := catalog.Change{Kind: k.Kind, Name: k.Name, Farm: "a", Base: &k.Record, Delete: true}
	if _, err := m.Commit(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Commit(t.Context(), w.volume(t, "v", "a", 2)); err != nil || r.Version != 3 {
		t.Errorf("version %d, %v", r.Version, err)
	}
}

// TestWhatIsSure: a neighbour's word that a volume is deleted is the answer while the
// origin is away, and nothing to stop a disk for. An admin's is, and the origin's.
func TestWhatIsSure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m, neighbour := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RoleNode, "a")
		first := w.publish(t, m.signer, w.volume(t, "v", "a", 1))
		k := m.lookup(t, content.KindVolume, "v")
		pause(t, 2*freshFor)
		w.away.Store(true)
		if !m.Sure(k) || m.Sure(m.lookup(t, content.KindVolume, "v")) {
			t.Error("what the origin says is not sure, or is after it has gone")
		}
		gone := w.sealed(t, neighbour, catalog.Change{Kind: content.KindVolume, Name: "v", Farm: "a", Delete: true}, first.Version+1).Record
		for _, by := range []trust.Signer{neighbour, w.founder} {
			m.asked = nil
			m.says(vouched(t, by, gone, time.Now()))
			pause(t, 2*freshFor)
			k, err := m.Lookup(t.Context(), content.KindVolume, "v", true)
			if is(t, "the word of one", err, content.ErrNotFound); m.Sure(k) != (by.Key == w.founder.Key) {
				t.Errorf("sure by the word of %s: %v", by.Identity().Role, m.Sure(k))
			}
		}
	})
}

// TestJunkIsNotWritten for another: what nobody could read would take the name.
func TestJunkIsNotWritten(t *testing.T) {
	w := newWorld(t)
	helper := w.member(t, tempDir(t, 1), trust.RoleNode, "b")
	asker := w.signer(t, trust.RoleNode, "a")
	wide := w.volume(t, "v", "a", 1)
	h := head(t, content.Public(), 1)
	body, err := catalog.Volume{ID: content.VolumeID{1}, Policy: catalog.PolicyLocal, Size: 1 << 30, Folded: catalog.Folded{Head: &h}, State: catalog.Attached}.Encode(w.codec)
	if err != nil {
		t.Fatal(err)
	}
	wide.Body = body
	for what, tt := range map[string]struct {
		ch   catalog.Change
		want error
	}{
		"junk":                   {catalog.Change{Kind: content.KindVolume, Name: "v", Farm: "a", Body: []byte("junk")}, content.ErrCorrupt},
		"an image in its place":  {catalog.Change{Kind: content.KindVolume, Name: "v", Farm: "a", Body: w.image(t, "v", content.Mesh(), 1).Body}, content.ErrCorrupt},
		"content for the public": {wide, content.ErrForbidden},
	} {
		sealed := w.sealed(t, asker, tt.ch, 1).Sealed
		_, err := helper.CommitFor(t.Context(), asker.Chain.Identity(), Submission{Sealed: sealed})
		is(t, what, err, tt.want)
		_, err = helper.Introduced(sealed)
		is(t, what+", introduced", err, tt.want)
		w.put(t, content.KindVolume, "x", w.sealed(t, asker, func() catalog.Change { c := tt.ch; c.Name = "x"; return c }(), 1).Sealed)
		_, err = helper.Lookup(t.Context(), content.KindVolume, "x", true)
		if err == nil {
			t.Errorf("%s is read from the bucket", what)
		}
		body, err := w.codec.Marshal(entryFile{Said: &recordFile{Sealed: sealed, Seen: time.Now().UnixMilli()}})
		if err == nil {
			err = helper.index.put(piece{ID: "volume/v", Links: [][]byte{}, Maps: []content.CID{}, Body: body})
		}
		if err != nil {
			t.Fatal(err)
		}
		helper.restart(t)
		if _, held := helper.Held(content.KindVolume, "v"); held {
			t.Errorf("%s is read from disk", what)
		}
	}
	good := w.sealed(t, asker, w.volume(t, "v", "a", 1), 1).Sealed
	_, err = helper.CommitFor(t.Context(), w.signer(t, trust.RoleNode, "a").Chain.Identity(), Submission{Sealed: good})
	is(t, "another's record", err, content.ErrForbidden)
	if _, err := helper.CommitFor(t.Context(), asker.Chain.Identity(), Submission{Sealed: good}); err != nil {
		t.Errorf("a good one after all that: %v", err)
	}
}

// TestNothingHeardMovesTheOrigin has an origin that comes and goes, restarts, and
// members that say whatever they can sign: what the origin answers is the answer, and
// while it is away no name goes back behind it, nor to another farm.
func TestNothingHeardMovesTheOrigin(t *testing.T) {
	dir, rounds := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		rounds++
		w := newWorld(t)
		m := w.member(t, fmt.Sprint(dir, "/", rounds), trust.RoleNode, "a")
		signers := []trust.Signer{w.signer(t, trust.RolePublisher, "a"), w.signer(t, trust.RolePublisher, "b"), w.signer(t, trust.RolePublisher, "c")}
		kind := rapid.SampledFrom([]content.Kind{content.KindImage, content.KindVolume}).Draw(t, "kind")
		change := func(s trust.Signer, n byte) catalog.Change {
			if kind == content.KindVolume {
				return w.volume(t, "x", s.Chain.Identity().Farm, n)
			}
			return w.image(t, "x", content.Mesh(), n)
		}
		owner := signers[0]
		var truth, shown uint64 // at the origin, and as the node last saw it there
		look := func() {
			k, err := m.Lookup(t.Context(), kind, "x", true)
			away := w.away.Load()
			switch {
			case truth == 0 && !away && err == nil:
				t.Fatalf("version %d of a name that is not there", k.Version)
			case !away && truth > 0 && (err != nil || k.Version != truth || !k.Confirmed || k.Doubt != ""):
				t.Fatalf("version %d, confirmed %t %s, %v, while the origin says %d", k.Version, k.Confirmed, k.Doubt, err, truth)
			case away && shown > 0 && (err != nil || k.Version < shown || kind == content.KindVolume && k.Farm != "a"):
				t.Fatalf("version %d of farm %q, %v, and the origin said %d", k.Version, k.Farm, err, shown)
			}
			if !away {
				shown = truth
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				if !w.away.Load() {
					truth = w.publish(t, owner, change(owner, byte(truth))).Version
				}
			},
			"away": func(t *rapid.T) { w.away.Store(!w.away.Load()) },
			"lie": func(t *rapid.T) {
				by, signer := rapid.SampledFrom(signers).Draw(t, "by"), rapid.SampledFrom(signers).Draw(t, "signer")
				version := rapid.OneOf(rapid.Uint64Range(1, 6), rapid.Uint64()).Draw(t, "version")
				ago := time.Duration(rapid.IntRange(-100, 1000).Draw(t, "seconds ago")) * time.Second
				m.says(vouched(t, by, w.sealed(t, signer, change(signer, 200), version).Record, time.Now().Add(-ago)))
			},
			"hush":    func(*rapid.T) { m.asked = nil },
			"restart": func(t *rapid.T) { m.restart(t) },
			"look": func(t *rapid.T) {
				if !w.away.Load() && shown == 0 {
					m.asked = nil // a name that was never seen is another property
				}
				look()
			},
		})
	})
}
