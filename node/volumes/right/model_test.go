package right

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/trust"
)

// world is one volume, the record of it, and the nodes that want it.
type world struct {
	t       *rapid.T
	version int // of the record
	body    catalog.Volume
	takenAt int              // when another node than the one before was written to it
	used    map[uint64]Stamp // by epoch
	told    map[trust.PublicKey]Stamp
	nodes   []*node
	alone   bool     // nobody but its writer has to have what is acknowledged; else these do:
	holders [2]Stamp // to which each has promised itself
	flying  []*request
	now     int
	random  uint64
}

// disk is what outlives a node's process.
type disk struct {
	stamp Stamp
	tried []Stamp
	here  bool
	lost  bool
	from  catalog.Volume // what it was made of, before it was served
}

// node is one that drives the machine as the product does: deeds in turn, one event at a
// time, and a gate that knows by how many gaps it was opened.
type node struct {
	key        trust.PublicKey
	disk       disk
	half       *half  // a folder that is being made
	full       bool   // the disk, which keeps nothing more
	older      []disk // copies, made at some time
	copied     bool   // the disk is one of those: it may be fenced
	state      State
	busy       *request
	rest       []Deed
	version    int // of the record that was read
	base       catalog.Volume
	gaps       int
	asked      int // gaps, when what was read was asked for
	open       int // one more than the gaps after which the gate was opened
	gapAt      int
	unreadable int // when a read last failed
	served     bool
	process    int
	claim      Stamp // under which the holders are brought what is written
}

// half is a folder that was made of a record, and has no name yet.
type half struct {
	of    catalog.Volume
	tried []Stamp // all of it is there, when it has one
}

// request is a read or a commit on its way to the origin, or back.
type request struct {
	node    *node
	process int
	commit  *catalog.Volume
	vouch   bool
	gaps    int // of the node, when it was sent
	version int
	answer  Event // nil until it has arrived there
	body    catalog.Volume
	at      int
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, alone: rapid.Bool().Draw(t, "alone"), version: 1, used: map[uint64]Stamp{}, told: map[trust.PublicKey]Stamp{}}
	for i := range 3 {
		w.nodes = append(w.nodes, &node{key: trust.PublicKey{byte(i + 1)}})
	}
	first := w.nodes[0]
	first.disk = disk{stamp: Stamp{1, w.incarnation()}, here: true}
	w.body = catalog.Volume{Holder: first.key, Epoch: 1, Incarnation: first.disk.stamp.Incarnation, State: catalog.Attached}
	w.used[1] = first.disk.stamp
	for _, n := range w.nodes {
		w.start(n)
	}
	return w
}

func (w *world) incarnation() uint64 { w.random++; return 1000 + w.random }

// start begins another process of a node, over what is on its disk.
func (w *world) start(n *node) {
	n.process++
	n.name()
	n.load(w.incarnation())
	n.busy, n.rest, n.open, n.served, n.claim = nil, nil, 0, false, Stamp{}
	if n.disk.here || len(n.disk.tried) > 0 {
		w.happen(n, Asked{})
	}
}

// name gives what is half made its name, where it is whole.
func (n *node) name() {
	if n.half != nil && len(n.half.tried) > 0 {
		n.disk = disk{tried: n.half.tried, from: n.half.of}
	}
	n.half = nil
}

// load begins an attach.
func (n *node) load(process uint64) {
	n.state = State{Self: n.key, Process: process, Stamp: n.disk.stamp, Tried: slices.Clone(n.disk.tried), Last: n.disk.stamp.Epoch, Here: n.disk.here}
	for _, t := range n.disk.tried {
		n.state.Last = max(n.state.Last, t.Epoch)
	}
	if !n.disk.here && n.disk.from.Holder != n.key && n.disk.from.State == catalog.Attached {
		n.state.From = n.disk.from
	}
}

func (w *world) happen(n *node, e Event) {
	if n.busy != nil || n.disk.lost && n.state.Stage == Lost {
		return
	}
	if _, ok := e.(StoodStill); ok {
		n.asked = n.gaps
	}
	w.step(n, e)
}

func (w *world) step(n *node, e Event) {
	next, deeds := Step(n.state, e)
	n.state = next
	for _, d := range deeds {
		switch d {
		case Read:
			w.send(n, &request{})
		case Vouch:
			w.send(n, &request{vouch: true})
		case Keep:
			switch {
			case n.state.Stage == Serving:
				n.disk, n.half = disk{stamp: n.state.Stamp, here: true}, nil
			case n.full:
				w.step(n, Unkept{})
				return
			case n.half != nil:
				n.half.tried = slices.Clone(n.state.Tried)
			default:
				n.disk.tried = slices.Clone(n.state.Tried)
			}
		case Adopt: // a folder of its own, which becomes the volume's when it is written
			n.half = &half{of: n.base}
			w.promise(n)
		case Tell:
			w.told[n.state.From.Holder] = StampOf(n.state.From)
		case Commit:
			body, stamp := n.base, n.state.Next()
			if n.half != nil && !slices.Contains(n.half.tried, stamp) || n.half == nil && !slices.Contains(n.disk.tried, stamp) {
				w.t.Fatalf("%v is sent and not kept", stamp)
			}
			body.Epoch, body.Incarnation, body.Holder, body.State = stamp.Epoch, stamp.Incarnation, n.key, catalog.Attached
			w.send(n, &request{commit: &body, version: n.version})
		case Serve:
			if n.half != nil || !n.disk.here {
				w.t.Fatalf("what is served is not whole: %+v", n.disk)
			}
			n.served = true
			w.admit(n)
			w.follow(n)
		case Open:
			w.admit(n)
		case Shut:
			n.open = 0
		case Stop:
			n.open, n.served, n.disk.lost, n.disk.here = 0, false, true, false
			mine := w.body.Holder == n.key && (stampIn(w.body, n.disk) || StampOf(w.body) == n.state.Stamp)
			if !n.copied && mine {
				w.t.Fatalf("fenced for nothing: the record says %+v, on the disk is %+v", StampOf(w.body), n.disk)
			}
			n.half = nil
		case RefuseAway:
			n.name()
		case Refuse, RefuseStale, RefuseGone, RefuseFull:
			n.half = nil
			if w.body.Holder == n.key && w.body.Incarnation == n.state.Process && !n.copied && d == Refuse {
				w.t.Fatalf("this process has it, and is refused: the record says %+v, on the disk is %+v", StampOf(w.body), n.disk)
			}
		}
	}
}

func stampIn(body catalog.Volume, d disk) bool {
	return StampOf(body) == d.stamp || slices.Contains(d.tried, StampOf(body))
}

func (w *world) admit(n *node) {
	if n.state.MayAcknowledge(w.alone) {
		n.open = n.asked + 1
	}
}

// promise has one of the holders, whichever is in reach, take nothing from anybody else any
// more, before the record is written.
func (w *world) promise(n *node) {
	w.random++
	h := &w.holders[w.random%2]
	if h.Epoch >= n.state.Next().Epoch {
		n.state, _ = Step(n.state, Outbid{h.Epoch})
	}
	*h = n.state.Next()
}

// follow has the holders promise themselves to who has the volume by the record, for all that
// it knows.
func (w *world) follow(n *node) {
	if !n.served || !n.state.IsSure() {
		return
	}
	n.claim = n.state.Stamp
	for i := range w.holders {
		if w.holders[i].Epoch < n.claim.Epoch {
			w.holders[i] = n.claim
		}
	}
}

func (w *world) send(n *node, r *request) {
	r.node, r.process, r.gaps = n, n.process, n.gaps
	n.busy = r
	w.flying = append(w.flying, r)
}

// arrive has a request done at the origin, or fail there; a commit may do both.
func (w *world) arrive(r *request, fails, applied bool) {
	r.at = w.now
	switch {
	case r.vouch && (fails || r.node.claim == Stamp{} || slices.ContainsFunc(w.holders[:], func(s Stamp) bool { return s != r.node.claim })):
		r.answer = Unvouched{}
	case r.vouch:
		r.answer = Vouched{}
	case r.commit == nil && fails:
		r.answer = Unreadable{}
	case r.commit == nil:
		r.version, r.body, r.answer = w.version, w.body, Sighted{Body: w.body}
	case fails && !applied:
		r.answer = Unwritten{}
	case r.version != w.version:
		r.answer = Overtaken{}
	default:
		stamp := StampOf(*r.commit)
		if other, ok := w.used[stamp.Epoch]; ok && other != stamp {
			w.t.Fatalf("epoch %d is used by %v and %v", stamp.Epoch, other, stamp)
		}
		w.used[stamp.Epoch] = stamp
		if r.commit.Holder != w.body.Holder {
			w.takenAt = w.now
		}
		w.version++
		w.body = *r.commit
		r.version, r.body, r.answer = w.version, w.body, Written{}
		if fails {
			r.answer = Unwritten{}
		}
	}
}

// deliver brings an answer back to a process, if it is there still.
func (w *world) deliver(r *request) {
	n := r.node
	if n.process != r.process {
		return
	}
	n.busy = nil
	switch r.answer.(type) {
	case Vouched:
		n.asked = r.gaps
	case Sighted, Written:
		n.version, n.base, n.asked = r.version, r.body, r.gaps
	case Unreadable, Unwritten:
		n.unreadable = r.at
	}
	w.step(n, r.answer)
}

// acknowledge has a client flush what it wrote. Who stood still while another took the
// volume says nothing, if it could have known.
func (w *world) acknowledge(n *node) {
	if !n.served || n.open != n.gaps+1 {
		return
	}
	if w.alone && !n.state.MayAcknowledge(true) {
		w.t.Fatalf("the gate is open in stage %s", n.state.Stage)
	}
	if w.body.Holder != n.key && w.takenAt <= n.gapAt && (n.unreadable <= n.gapAt || !w.alone) {
		w.t.Fatalf("node %d acknowledges at %d; the volume was taken at %d, it stood still until %d, and the origin was last unreadable at %d", n.key[0], w.now, w.takenAt, n.gapAt, n.unreadable)
	}
}

// TestNobodyWritesWhatIsAnothers drives three nodes that want one volume, with an origin
// that fails before or after it has done what it was asked, requests that arrive late,
// processes that stand still, are killed, and find an older disk: no epoch is used twice,
// nobody acknowledges anything over a standstill in which the volume was taken, and
// nobody is fenced whose the volume is.
func TestNobodyWritesWhatIsAnothers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt)
		any := func(rt *rapid.T) *node { return rapid.SampledFrom(w.nodes).Draw(rt, "node") }
		flying := func(rt *rapid.T, there bool) *request {
			some := slices.DeleteFunc(slices.Clone(w.flying), func(r *request) bool { return (r.answer != nil) != there })
			if len(some) == 0 {
				return nil
			}
			return rapid.SampledFrom(some).Draw(rt, "request")
		}
		arrive := func(rt *rapid.T) {
			if r := flying(rt, false); r != nil {
				fate := rapid.SampledFrom([]string{"done", "done", "done", "lost", "done and lost"}).Draw(rt, "fate")
				w.arrive(r, fate != "done", fate == "done and lost")
			}
		}
		deliver := func(rt *rapid.T) {
			if r := flying(rt, true); r != nil {
				w.flying = slices.DeleteFunc(w.flying, func(x *request) bool { return x == r })
				w.deliver(r)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"arrive": arrive, "arrive too": arrive, "deliver": deliver, "deliver too": deliver,
			"attach": func(rt *rapid.T) {
				if n := any(rt); !n.served && n.busy == nil {
					n.load(n.state.Process)
					w.happen(n, Asked{Wish{Takeover: rapid.Bool().Draw(rt, "takeover")}})
				}
			},
			"follow": func(rt *rapid.T) { w.follow(any(rt)) },
			"look":   func(rt *rapid.T) { w.happen(any(rt), Due{}) },
			"outbid": func(rt *rapid.T) {
				w.happen(any(rt), Outbid{Epoch: w.body.Epoch + rapid.Uint64Range(0, 3).Draw(rt, "more")})
			},
			"stand still": func(rt *rapid.T) {
				n := any(rt)
				n.gaps, n.gapAt = n.gaps+1, w.now
			},
			"follow too": func(rt *rapid.T) { w.follow(any(rt)) },
			"beat": func(rt *rapid.T) {
				if n := any(rt); n.served && n.open != n.gaps+1 {
					w.happen(n, StoodStill{})
				}
			},
			"fill": func(rt *rapid.T) { n := any(rt); n.full = !n.full },
			"copy": func(rt *rapid.T) { n := any(rt); n.older = append(n.older, n.disk) },
			"kill": func(rt *rapid.T) { w.start(any(rt)) },
			"roll back": func(rt *rapid.T) {
				if n := any(rt); len(n.older) > 0 && rapid.IntRange(0, 9).Draw(rt, "rarely") == 0 {
					n.disk, n.copied = rapid.SampledFrom(n.older).Draw(rt, "disk"), true
					w.start(n)
				}
			},
			"": func(*rapid.T) {
				w.now++
				for _, n := range w.nodes {
					w.acknowledge(n)
				}
			},
		})
	})
}

// TestAnAttachThatIsLateIsRefused: what carries a lower generation than was here does
// nothing, an equal one goes on.
func TestAnAttachThatIsLateIsRefused(t *testing.T) {
	self := trust.PublicKey{1}
	for generation, want := range map[uint64]string{6: "[stale]", 7: "[keep commit]", 8: "[keep commit]", 0: "[keep commit]"} {
		s := State{Self: self, Process: 2, Stamp: Stamp{3, 1}, Here: true}
		s, _ = Step(s, Asked{Wish{Generation: generation}})
		_, deeds := Step(s, Sighted{Body: catalog.Volume{Holder: self, Epoch: 3, Incarnation: 1, Generation: 7, State: catalog.Attached}})
		if got := fmt.Sprint(deeds); got != want {
			t.Errorf("generation %d: %s, want %s", generation, got, want)
		}
	}
}

// TestADiskThatIsOld: what the record has from this node, and the disk knows nothing of,
// is of a later life of it, or of its twin's; it serves nothing.
func TestADiskThatIsOld(t *testing.T) {
	self := trust.PublicKey{1}
	s := State{Self: self, Process: 9, Stamp: Stamp{3, 1}, Tried: []Stamp{{4, 2}}, Here: true}
	s, _ = Step(s, Asked{})
	after, deeds := Step(s, Sighted{Body: catalog.Volume{Holder: self, Epoch: 5, Incarnation: 3, State: catalog.Attached}})
	if after.Stage != Lost || fmt.Sprint(deeds) != "[stop]" {
		t.Errorf("it is %s, %v", after.Stage, deeds)
	}
}

// TestOutbid: an epoch that holders have promised to who did not come is passed over, by
// who has the volume, once, and by who takes it.
func TestOutbid(t *testing.T) {
	self := trust.PublicKey{1}
	mine := catalog.Volume{Holder: self, Epoch: 3, Incarnation: 2, State: catalog.Attached}
	s := State{Self: self, Process: 2, Stamp: Stamp{3, 2}, Here: true, Stage: Serving}
	s, deeds := Step(s, Outbid{7})
	if fmt.Sprint(deeds) != "[read]" {
		t.Errorf("%v", deeds)
	}
	if s, deeds = Step(s, Sighted{Body: mine}); fmt.Sprint(deeds) != "[keep open commit]" || s.Next() != (Stamp{8, 2}) || s.IsSure() {
		t.Errorf("%v, %v", deeds, s.Next())
	}
	s, _ = Step(s, Written{})
	mine.Epoch = 8
	if _, deeds = Step(s, Outbid{5}); fmt.Sprint(deeds) != "[read]" || !s.IsSure() {
		t.Errorf("%v, %+v", deeds, s)
	}
	if _, deeds = Step(s, Sighted{Body: mine}); len(deeds) > 0 {
		t.Errorf("%v, and epoch 8 is later than all that was promised", deeds)
	}
	heir := State{Self: trust.PublicKey{2}, Process: 5}
	heir, _ = Step(heir, Asked{Wish{Takeover: true}})
	heir, _ = Step(heir, Sighted{Body: mine})
	heir, _ = Step(heir, Outbid{11})
	if heir, _ = Step(heir, Written{}); heir.Stamp != (Stamp{12, 5}) {
		t.Errorf("%+v", heir.Stamp)
	}
}
