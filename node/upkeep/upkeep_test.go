package upkeep

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/garbage/check"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// mesh is an origin, whose clock is an hour ahead of its members'.
type mesh struct {
	*mem.Bucket
	key    trust.PrivateKey
	broken atomic.Bool // lists fail
}

const ahead = time.Hour

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{key: trust.NewPrivateKey()}
	m.Bucket = mem.New(t, mem.Config{
		Now: func() time.Time { return time.Now().Add(ahead) },
		Fault: func(c mem.Call) mem.Fault {
			if c.Op == mem.List && m.broken.Load() {
				return mem.Fault{Err: content.ErrForbidden}
			}
			return mem.Fault{}
		},
	})
	if err := catalog.ClaimMesh(t.Context(), m, m.key.Public()); err != nil {
		t.Fatal(err)
	}
	return m
}

// member is one with that role, which collects daily and checks weekly.
func (m *mesh) member(t *testing.T, role trust.Role, change ...func(*Config)) *Upkeep {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: m.key}.Issue(trust.Identity{Key: key.Public(), Role: role, Farm: "a"}, time.Now().Add(ahead))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		File: filepath.Join(t.TempDir(), "upkeep.json"), CollectEvery: 24 * time.Hour, VerifyEvery: 7 * 24 * time.Hour,
		Readable: func() bucket.Bucket { return m }, Writable: func() (bucket.Bucket, error) { return m, nil },
		Suspect:    func(context.Context, ...pack.ID) {},
		Operations: operations.New(slog.New(slog.DiscardHandler), time.Now), Signer: trust.Signer{Key: key, Chain: chain}, Verifier: trust.NewVerifier(m.key.Public()), Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

// epoch is how many collections there were.
func (m *mesh) epoch(t *testing.T) uint64 {
	t.Helper()
	c, err := catalog.New(catalog.Config{Bucket: m, Verifier: trust.NewVerifier(m.key.Public()), Now: func() time.Time { return time.Now().Add(ahead) }})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Get(t.Context(), content.KindCollection, catalog.CollectionName)
	if errors.Is(err, content.ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	x, err := catalog.DecodeCollection(content.NewCodec(), r.Body)
	if err != nil || x.Ended == 0 {
		t.Fatalf("%+v, %v", x, err)
	}
	return x.Epoch
}

// pass lets time pass, in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func (u *Upkeep) warnings() (out string) {
	u.Warn(func(about, format string, args ...any) { out += about + ": " + fmt.Sprintf(format, args...) + "\n" })
	return out
}

// TestTheMeshCollectsOnceADay, whichever of its publishers and admins does, and by the store's clock: the first time a
// day after they have begun. A node of another role never does.
func TestTheMeshCollectsOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		all := []*Upkeep{m.member(t, trust.RoleAdmin), m.member(t, trust.RolePublisher), m.member(t, trust.RolePublisher), m.member(t, trust.RoleNode)}
		for _, u := range all {
			go func() { _ = u.Run(ctx) }()
		}
		pass(24*time.Hour - time.Second)
		if n := m.epoch(t); n != 0 {
			t.Fatalf("%d collections before the first day is over", n)
		}
		pass(10*24*time.Hour - time.Minute) // each is late by a sixteenth of a day at most
		n := m.epoch(t)
		if n < 9 || n > 10 {
			t.Fatalf("%d collections in eleven days", n)
		}
		for _, u := range all[:3] {
			if v := u.View().Collections; v.Last == nil || v.Last.Epoch != n || v.Ended.IsZero() || v.Error != "" || !v.Due.After(time.Now()) {
				t.Errorf("%+v", v)
			}
		}
		if v := all[3].View().Collections; v.Last != nil || !v.Due.IsZero() {
			t.Errorf("a node that may not: %+v", v)
		}
		stop()
		synctest.Wait()
	})
}

// TestACollectionThatNobodyBelieves, or of a time to come, does not keep the mesh from collecting.
func TestACollectionThatNobodyBelieves(t *testing.T) {
	for what, record := range map[string]func(u *Upkeep) []byte{
		"rubbish": func(*Upkeep) []byte { return []byte("rubbish") },
		"of a time to come": func(u *Upkeep) []byte {
			later := time.Now().Add(1000 * time.Hour).UnixMilli()
			body, err := catalog.Collection{Epoch: 1, Holder: u.cfg.Signer.Key.Public(), Began: later, Seen: later, Ended: later}.Encode(content.NewCodec())
			if err != nil {
				t.Fatal(err)
			}
			b, err := u.cfg.Signer.Seal(trust.Envelope{Kind: content.KindCollection, Name: catalog.CollectionName, Version: 1, SignedAt: time.Now().Add(ahead), Body: body, Commit: trust.NewCommit()})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMesh(t)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			u := m.member(t, trust.RoleAdmin)
			if _, err := m.Put(t.Context(), "records/collection/origin", bucket.Bytes(record(m.member(t, trust.RoleAdmin))), bucket.IfAbsent()); err != nil {
				t.Fatal(err)
			}
			go func() { _ = u.Run(ctx) }()
			pass(27 * time.Hour)
			if v := u.View().Collections; v.Ended.IsZero() || v.Ended.After(time.Now().Add(ahead)) || v.Error != "" {
				t.Errorf("%s: %+v", what, v)
			}
			stop()
			synctest.Wait()
		})
	}
}

// TestACollectionThatFailsIsSaid by every node that may collect, until one has gone well.
func TestACollectionThatFailsIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		a, b := m.member(t, trust.RoleAdmin), m.member(t, trust.RoleAdmin)
		for _, u := range []*Upkeep{a, b} {
			go func() { _ = u.Run(ctx) }()
		}
		m.broken.Store(true)
		pass(36 * time.Hour)
		for _, u := range []*Upkeep{a, b} {
			if said := u.warnings(); !strings.Contains(said, "origin gc: ") || !strings.Contains(said, "forbidden") {
				t.Errorf("it says %q", said)
			}
		}
		m.broken.Store(false)
		pass(36 * time.Hour)
		for _, u := range []*Upkeep{a, b} {
			if said := u.warnings(); said != "" {
				t.Errorf("it says %q", said)
			}
		}
		stop()
		synctest.Wait()
	})
}

// TestNobodysYes: a run that nobody has asked for deletes no more than the share, and says what to do.
func TestNobodysYes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		u := m.member(t, trust.RoleAdmin)
		id, err := pack.NewID(content.Mesh(), time.Now(), rand.Reader)
		if err == nil {
			_, err = m.Put(t.Context(), id.Key(), bucket.Bytes(make([]byte, 1<<20)), bucket.IfAbsent())
		}
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = u.Run(ctx) }()
		pass(4 * 24 * time.Hour)
		if said := u.warnings(); !strings.Contains(said, "--yes") {
			t.Errorf("it says %q", said)
		}
		v, err := u.Collect(CollectRequest{Yes: true})
		if err == nil {
			v, err = u.cfg.Operations.Wait(t.Context(), v.ID)
		}
		if said := u.warnings(); err != nil || v.State != operations.Done || said != "" || u.View().Collections.Last.Deleted.Objects != 1 {
			t.Errorf("%+v, %v: %s, %+v", v, err, said, u.View().Collections.Last)
		}
		stop()
		synctest.Wait()
	})
}

func TestWhenTheNextIsDue(t *testing.T) {
	const day = 24 * time.Hour
	started := time.UnixMilli(1_000_000_000_000)
	after := func(d time.Duration) int64 { return started.Add(d).UnixMilli() }
	for what, x := range map[string]struct {
		last catalog.Collection
		want time.Duration
	}{
		"there was none": {catalog.Collection{}, day},
		"long ago":       {catalog.Collection{Epoch: 3, Seen: after(-9 * day), Ended: after(-9 * day)}, -8 * day},
		"just now":       {catalog.Collection{Epoch: 3, Seen: after(day), Ended: after(day)}, 2 * day},
		"cut short":      {catalog.Collection{Epoch: 3, Seen: after(-day)}, -21 * time.Hour},
	} {
		if got := dueAfter(x.last, day, started).Sub(started); got != x.want {
			t.Errorf("%s: %s after the start, want %s", what, got, x.want)
		}
	}
}

// TestWhatIsRefused, and what is to be done then.
func TestWhatIsRefused(t *testing.T) {
	m := newMesh(t)
	admin := m.member(t, trust.RoleAdmin)
	none := m.member(t, trust.RoleAdmin, func(c *Config) {
		c.Readable = func() bucket.Bucket { return nil }
		c.Writable = func() (bucket.Bucket, error) {
			return nil, fmt.Errorf("this node has no origin: %w", content.ErrUnavailable)
		}
	})
	collect := func(u *Upkeep, r CollectRequest) error { _, err := u.Collect(r); return err }
	verify := func(u *Upkeep, r VerifyRequest) error { _, err := u.Verify(r); return err }
	copied := func(u *Upkeep, to string) error { _, err := u.Copy(t.Context(), CopyRequest{to}); return err }
	_, weighed := none.Usage()
	for what, x := range map[string]struct {
		err  error
		kind error
		says string
	}{
		"by a node":         {collect(m.member(t, trust.RoleNode), CollectRequest{}), content.ErrForbidden, "run it on"},
		"a short grace":     {collect(admin, CollectRequest{Grace: 60}), content.ErrInvalid, "1h"},
		"a negative grace":  {collect(admin, CollectRequest{Grace: -3600}), content.ErrInvalid, "1h"},
		"a grace for ever":  {collect(admin, CollectRequest{Grace: 1e300}), content.ErrInvalid, "366 days at most"},
		"a share above all": {collect(admin, CollectRequest{Share: 25}), content.ErrInvalid, "0.25"},
		"a negative share":  {collect(admin, CollectRequest{Share: -0.1}), content.ErrInvalid, "share"},
		"a waste above all": {collect(admin, CollectRequest{Waste: 10}), content.ErrInvalid, "0.1"},
		"too much data":     {verify(admin, VerifyRequest{ReadData: 5}), content.ErrInvalid, "0.05"},
		"no URL":            {copied(admin, "backup"), content.ErrInvalid, "file:///folder"},
		"without origin":    {collect(none, CollectRequest{}), content.ErrUnavailable, "run it on"},
		"nothing to verify": {verify(none, VerifyRequest{}), content.ErrUnavailable, "no origin"},
		"nothing to copy":   {copied(none, "file:///x"), content.ErrUnavailable, "no origin"},
		"nothing to weigh":  {weighed, content.ErrUnavailable, "no origin"},
	} {
		if !errors.Is(x.err, x.kind) || !strings.Contains(x.err.Error(), x.says) {
			t.Errorf("%s: %v, want %v that says %q", what, x.err, x.kind, x.says)
		}
	}
}

// TestADryRunMayGoBesideAnother, and its report is its operation's result.
func TestADryRunMayGoBesideAnother(t *testing.T) {
	m := newMesh(t)
	u := m.member(t, trust.RolePublisher)
	for _, dry := range []bool{true, false} {
		v, err := u.Collect(CollectRequest{DryRun: dry})
		if err == nil {
			v, err = u.cfg.Operations.Wait(t.Context(), v.ID)
		}
		var got struct{ GC garbage.Report }
		if err != nil || v.State != operations.Done || json.Unmarshal(v.Result, &got) != nil || got.GC.Dry != dry {
			t.Fatalf("%+v, %v", v, err)
		}
		if n := m.epoch(t); n == 0 != dry {
			t.Errorf("dry %t: %d collections", dry, n)
		}
	}
}

// TestAChecksProgressIsRemembered over starts, and what it has found; a file that is no such thing is begun anew.
func TestAChecksProgressIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		u := m.member(t, trust.RoleAdmin)
		half := check.Report{Last: "records/image/m", Records: 7, HurtNames: 1, Hurt: []check.Hurt{{Name: "image:a", Damages: []string{"gone"}}}}
		u.remember(checked{Seed: 5, Report: half})
		again := New(u.cfg)
		if left, err := again.untilCheck(t.Context()); err != nil || left > 0 {
			t.Fatalf("it goes on in %s, %v", left, err)
		}
		again.verifyNow(t.Context())
		v := again.View().Checks
		if v.Report == nil || v.Report.Records != 7 || v.Report.HurtNames != 1 || !strings.Contains(again.warnings(), "image:a") {
			t.Fatalf("%+v: %s", v, again.warnings())
		}
		if v.Ended.Sub(time.Now().Add(ahead)).Abs() > time.Minute {
			t.Errorf("it ended at %s by its own clock", v.Ended)
		}
		third := New(u.cfg)
		if left, err := third.untilCheck(t.Context()); err != nil || left < 6*24*time.Hour {
			t.Errorf("the next is in %s, %v", left, err)
		}
		again.verifyNow(t.Context()) // a whole one, of nothing
		if said := again.warnings(); said != "" {
			t.Errorf("it says %s", said)
		}
	})
}
