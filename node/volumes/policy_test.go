package volumes

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// stores are those of the members of a farm, who reach each other.
type stores struct {
	of   map[peer.ID]*holders.Store
	from exchange.Peer
}

func (s stores) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	if e, ok := m.(wire.Extend); ok {
		e.Bytes = bytes.Clone(e.Bytes)
		m = e
	}
	finish := s.of[to].Take(s.from, m)
	return func() (*wire.Held, []byte, error) { return finish(ctx) }, nil
}

// holdingPair is a pair with two more members, all of whom hold for each other.
type holdingPair struct {
	*pair
	all []trust.PublicKey // those of a and b first
	stores
}

func newHoldingPair(t *testing.T) *holdingPair {
	p := &holdingPair{pair: newPair(t), stores: stores{of: map[peer.ID]*holders.Store{}}}
	for range 4 {
		key := trust.NewPrivateKey().Public()
		s, err := holders.Open(holders.StoreConfig{Dir: filepath.Join(t.TempDir(), "held"), Farm: testFarm})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		p.all, p.of[identity.PeerID(key)] = append(p.all, key), s
	}
	p.holds(p.a, 0)
	p.holds(p.b, 1)
	return p
}

// holds has a node be one of the members.
func (p *holdingPair) holds(w *world, i int) {
	w.cfg.Self = p.all[i]
	self := exchange.Peer{ID: identity.PeerID(p.all[i]), Identity: trust.Identity{Key: p.all[i], Role: trust.RoleNode, Farm: testFarm}}
	w.cfg.Holders = &holders.Farm{
		Self: p.all[i], Lane: stores{p.of, self}, Fills: make(chan struct{}, holders.FillsMax), Log: w.cfg.Log,
		Live: func() []trust.PublicKey {
			return slices.DeleteFunc(slices.Clone(p.all), func(k trust.PublicKey) bool { return k == self.Identity.Key })
		},
	}
}

// again starts a node anew, with its folder as it is.
func (p *holdingPair) again(t *testing.T, w *world, i int) *world {
	w = w.again(t)
	p.join(w)
	p.holds(w, i)
	return w
}

// flushed writes to a volume, and has it acknowledged.
func (w *world) flushed(t *testing.T, name string, shadow []byte, seed uint64) {
	t.Helper()
	w.fill(t, name, shadow, 20, seed)
	if err := w.device(name).front.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestPolicyIsChanged: what was acknowledged under one policy is not lost when the volume
// has another since, its node goes, and another takes it over: not what the bucket has,
// nor what holders have.
func TestPolicyIsChanged(t *testing.T) {
	for _, change := range [][]string{
		{"farm:2", "origin"}, {"farm:2", "local"}, {"origin", "farm:2"}, {"origin", "local"}, {"farm:2", "farm:1"},
		{"farm:2", "origin", "farm:1"}, {"origin", "farm:1", "local"},
	} {
		t.Run(change[0]+" to "+change[len(change)-1], func(t *testing.T) {
			p := newHoldingPair(t)
			want := make([]byte, testSize)
			p.a.put(t, "disk", Spec{Size: testSize, Durability: change[0]})
			p.a.flushed(t, "disk", want, 1)
			for i, policy := range change[1:] {
				p.a.put(t, "disk", Spec{Durability: policy})
				if i < len(change)-2 {
					p.a.flushed(t, "disk", want, uint64(2+i))
				}
			}
			p.b.put(t, "disk", Spec{Takeover: true})
			p.b.is(t, "disk", want)
		})
	}
}

// TestPolicyIsOriginAgain: flushes go on where the record is, when the volume was folded
// while they went elsewhere.
func TestPolicyIsOriginAgain(t *testing.T) {
	p := newPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "origin"})
	p.a.flushed(t, "disk", want, 1)
	p.a.put(t, "disk", Spec{Durability: "local"})
	p.a.flushed(t, "disk", want, 2)
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "disk", Spec{Durability: "origin"})
	p.a.flushed(t, "disk", want, 3)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// TestPolicyIsHoldersAgain: holders that the record has dismissed, under a policy that asks for
// none, are named again before what they have is acknowledged.
func TestPolicyIsHoldersAgain(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	p.a.put(t, "disk", Spec{Durability: "local"}) // and nothing is flushed under that
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	if body, err := p.store.body("disk"); err != nil || len(body.Holders) > 0 {
		t.Fatalf("%+v, %v", body, err)
	}
	p.a.put(t, "disk", Spec{Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 2)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// TestWithoutItsHolders: who takes a volume over under a policy that asks for none, while those are
// away that another had named, goes on without them: they are its holders again only once
// they have what it writes.
func TestWithoutItsHolders(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	p.a.flushed(t, "disk", bytes.Clone(want), 1) // which stays with that node, and its holders
	p.a.put(t, "disk", Spec{Durability: "local"})
	far := p.b.cfg.Holders.Lane
	p.b.cfg.Holders.Lane = farAway{far}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.cfg.Holders.Lane = far
	if body, err := p.store.body("disk"); err != nil || len(body.Holders) > 0 {
		t.Errorf("%d holders are named that have what it has not: %v", len(body.Holders), err)
	}
	p.b.put(t, "disk", Spec{Durability: "farm:2"})
	p.b.flushed(t, "disk", want, 2)
	p.b.is(t, "disk", want)
	_ = p.a.device("disk").happen(t.Context(), right.Due{}) // it sees whose the volume is
	p.a.giveUpLost(t.Context())
	p.a.put(t, "disk", Spec{Takeover: true})
	p.a.is(t, "disk", want)
}

// farAway reaches nobody.
type farAway struct{ holders.Lane }

func (farAway) Ask(context.Context, peer.ID, wire.Message) (func() (*wire.Held, []byte, error), error) {
	return nil, content.ErrUnavailable
}

// TestConfirmedLater: a volume whose flushes go to the origin, started while that was away,
// writes under the epoch that it has from the moment on that the origin is back, and who
// takes it over ends that one.
func TestConfirmedLater(t *testing.T) {
	p := newPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "origin"})
	p.a.flushed(t, "disk", want, 1)
	p.a = p.a.again(t)
	p.join(p.a)
	p.store.down = true
	p.a.openAll(t.Context())
	p.a.fill(t, "disk", want, 5, 2)
	p.store.down = false
	p.a.lookAtOwned(t.Context(), right.NewLooks(0, p.a.now))
	p.a.flushed(t, "disk", want, 3)
	old := p.a.device("disk")
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
	if err := old.vol.WriteAt(t.Context(), make([]byte, 512), 0, true); err == nil {
		t.Error("a flush is acknowledged after a takeover")
	}
}

// TestUncommittedUnderOrigin: so does one that was made while the origin was away, under a
// name of which others had epochs before.
func TestUncommittedUnderOrigin(t *testing.T) {
	p := newPair(t)
	for range 3 {
		p.b.put(t, "disk", Spec{Size: testSize})
		if err := p.b.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
			t.Fatal(err)
		}
	}
	p.store.down = true
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "origin"})
	p.store.down = false
	if err := p.a.commitLater(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	old := p.a.device("disk")
	p.b.put(t, "disk", Spec{Takeover: true})
	if err := old.vol.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 512), 0, true); err == nil {
		t.Error("a flush is acknowledged after a takeover")
	}
}

// TestReleasedNamesNobody: a volume that was given up has all in the bucket, and who
// attaches it is never a holder of its own.
func TestReleasedNamesNobody(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:3"})
	p.a.flushed(t, "disk", want, 1)
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	if body, err := p.store.body("disk"); err != nil || body.State != catalog.Released || len(body.Holders) > 0 {
		t.Errorf("%+v, %v", body, err)
	}
	p.b.put(t, "disk", Spec{})
	p.b.flushed(t, "disk", want, 2)
	if body, err := p.store.body("disk"); err != nil || len(body.Holders) != 3 || slices.Contains(body.Holders, p.b.cfg.Self) {
		t.Errorf("%+v, %v", body, err)
	}
	p.b.is(t, "disk", want)
}

// unreached is a farm of whom nobody answers.
type unreached struct{}

func (unreached) Ask(context.Context, peer.ID, wire.Message) (func() (*wire.Held, []byte, error), error) {
	return nil, content.ErrUnavailable
}

// TestOriginInPlaceOfHolders: what holders alone have is not passed over by a takeover that
// can't reach them, though flushes go to the origin by now; once one has, nobody needs them.
func TestOriginInPlaceOfHolders(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	p.a.put(t, "disk", Spec{Durability: "origin"})
	p.b.cfg.Holders.Lane = unreached{}
	if _, _, err := p.b.Put(t.Context(), "disk", Spec{Takeover: true}); !errors.Is(err, content.ErrUnavailable) {
		t.Fatalf("while they alone have what was acknowledged: %v", err)
	}
	if err := p.a.device("disk").front.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// TestPolicyOverALaterEpoch: a volume that has another policy, and other limits, than it was
// attached with keeps them when its node takes the next epoch.
func TestPolicyOverALaterEpoch(t *testing.T) {
	for _, made := range []bool{true, false} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize, Durability: "origin", Limits: Limits{IOPS: 7}})
		if !made {
			if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
				t.Fatal(err)
			}
			p.a.put(t, "disk", Spec{Durability: "origin", Limits: Limits{IOPS: 7}})
		}
		p.a.put(t, "disk", Spec{Durability: "local", Limits: Limits{IOPS: 9}})
		was, _ := p.store.body("disk")
		if err := p.a.device("disk").happen(t.Context(), right.Outbid{Epoch: was.Epoch + 1}); err != nil {
			t.Fatal(err)
		}
		if now, err := p.store.body("disk"); err != nil || now.Epoch <= was.Epoch+1 || now.Policy != "local" || now.IOPS != 9 {
			t.Errorf("made just now %t: %+v, %v", made, now, err)
		}
	}
}

// TestForkIsHeld: a fork begins with segments of its parent, of an epoch that may be as late as its
// own. Its flushes have holders at once, and who takes it over reads what they were told.
func TestForkIsHeld(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.flushed(t, "disk", want, 1)
	p.a.put(t, "fork", Spec{From: content.Ref{Kind: content.KindVolume, Name: "disk"}, Durability: "farm:2"})
	p.a.flushed(t, "fork", want, 2)
	p.b.put(t, "fork", Spec{Takeover: true})
	p.b.is(t, "fork", want)
}

// TestDegradeIsOfHolders: what a volume without holders does without them is no question, and is not kept in silence.
func TestDegradeIsOfHolders(t *testing.T) {
	w := newPair(t).a
	for _, policy := range []string{"", catalog.PolicyLocal, catalog.PolicyOrigin} {
		if _, _, err := w.Put(t.Context(), "disk", Spec{Size: testSize, Durability: policy, Degrade: catalog.PolicyLocal}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v", policy, err)
		}
	}
	w.put(t, "disk", Spec{Size: testSize})
	if _, _, err := w.Put(t.Context(), "disk", Spec{Degrade: catalog.PolicyLocal}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("attached: %v", err)
	}
	w.put(t, "disk", Spec{Durability: "farm:1", Degrade: catalog.PolicyLocal})
	w.put(t, "disk", Spec{Durability: catalog.PolicyLocal})
}
