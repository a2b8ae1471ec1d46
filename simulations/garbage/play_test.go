package garbage

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

const (
	// acts are how often all is quiet in a play, and deedsMax how much is asked for in each act.
	acts     = 16
	deedsMax = 8
	// atOnce is how many deeds are under way at once.
	atOnce = 4
	// endings bounds the runs until nothing more is written anew: each may leave a pack of which little lives.
	endings = 12
)

// TestNothingThatLivesIsLost: nodes whose clocks are off publish, replace, tag, remove, put away, fold, fork and lease, on the
// same names and at once, while two collect; each request may take longer than the grace, fail, or lose its reply; nodes
// vanish and come back with what is on their disks. What was acknowledged is whole whenever it is quiet, and what is dead
// is gone two runs later.
func TestNothingThatLivesIsLost(t *testing.T) {
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(soak.Of(4, 1000)), "rapid.shrinktime": "1ns", "rapid.nofailfile": "true"} {
		before := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		defer flag.Set(name, before)
	}
	rapid.Check(t, func(r *rapid.T) {
		seed := rapid.Uint64().Draw(r, "seed")
		if story, err := played(t, seed); err != nil {
			t.Logf("seed %d:\n%s", seed, story)
			r.Fatalf("seed %d: something was lost, or is left: the first line that says WRONG tells", seed)
		}
	})
}

// played plays a play.
func played(t *testing.T, seed uint64) (story string, err error) {
	root, end := folder(t)
	defer end()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, root, seed)
		s.play()
		story, err = s.told(), s.failed()
	})
	return story, err
}

// folder makes one on a disk that syncs at once, where there is any.
func folder(t *testing.T) (root string, end func()) {
	shm := "/dev/shm"
	if info, err := os.Stat(shm); err != nil || !info.IsDir() {
		shm = ""
	}
	root, err := os.MkdirTemp(shm, "grange-garbage-")
	if err != nil {
		t.Fatal(err)
	}
	return root, func() { _ = os.RemoveAll(root) }
}

func (s *stage) play() {
	s.faults = pick(s, faults{}, faults{1, 1, 0}, faults{2, 2, 1}, faults{6, 6, 3})
	s.note("of 1000 requests these go wrong: %+v", s.faults)
	for i := range 3 {
		s.join(time.Duration((i+s.random.IntN(3))%3-1) * time.Hour)
	}
	for n := 0; n < acts && s.failed() == nil; n++ {
		s.act(n)
	}
	if s.failed() == nil {
		s.finish()
	}
	for _, p := range s.there() {
		p.end(errAway)
		s.drain(true)
		p.close()
	}
}

// actUntilQuiet has some deeds be done, until all is quiet again.
func (s *stage) actUntilQuiet(left int) {
	for s.quiet(); left > 0 || s.busy() > 0; s.quiet() {
		there := s.there()
		switch {
		case len(there) > 0 && left > 0 && (s.busy() == 0 || s.busy() < atOnce && s.chance(8)):
			p := there[s.random.IntN(len(there))]
			what, do := s.drawn(deeds()).draw(s, p)
			left--
			if do != nil {
				s.begins(p, what, do)
			}
		case len(there) > 0 && s.chance(250):
			there[s.random.IntN(len(there))].node.kill()
		case len(there) < len(s.nodes) && (len(there) == 0 || s.chance(60)):
			s.revive()
		case s.chance(20):
			s.carryOut()
		case len(s.ready()) > 0:
			s.let(false)
		default:
			s.pass(time.Duration(1 + s.random.Int64N(int64(10*time.Minute)))) // somebody waits for that
		}
	}
}

// revive has one that is away come back.
func (s *stage) revive() {
	away := slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool { return n.p != nil })
	away[s.random.IntN(len(away))].begin()
}

// act is some deeds, a look at all that there is, and a while.
func (s *stage) act(n int) {
	s.actUntilQuiet(1 + s.random.IntN(deedsMax))
	s.whole(fmt.Sprintf("after act %d", n), false)
	s.pass(pick(s, 0, time.Minute, 2*time.Hour, grace/2, grace+time.Hour, grace+time.Hour, 3*grace))
}

// finish has all be well: all that is named is whole then, and what is dead is gone after two runs.
func (s *stage) finish() {
	s.note("all is well from now on")
	for len(s.there()) < len(s.nodes) {
		s.revive()
	}
	for len(s.late) > 0 {
		s.carryOut()
	}
	s.pass(3 * time.Hour) // so that no record is signed in the future for anybody
	s.drain(true)
	s.mend()
	s.whole("in the end", true)
	s.gone()
	s.whole("when all is collected", true)
}

// mend has what was committed and never acknowledged be done once more, as whoever was told would.
func (s *stage) mend() {
	for _, r := range s.records() {
		if s.acked[r.Envelope.Commit] || r.Kind == content.KindCollection {
			continue
		}
		p := s.nodes[0].p
		for _, n := range s.nodes {
			if r.Kind == content.KindVolume && n.signer.Key.Public() == r.Envelope.Signer.Key {
				p = n.p
			}
		}
		s.calm(p, "mend "+r.Label(), func(ctx context.Context) error { return s.mended(ctx, p, r.Kind, r.Name) })
	}
}

// calm has a deed be done that must succeed.
func (s *stage) calm(p *process, what string, do func(context.Context) error) {
	s.begins(p, what, func(ctx context.Context) error {
		err := do(ctx)
		if err != nil {
			s.fault(fmt.Errorf("when all is well, %s: %w", what, err))
		}
		return err
	})
	s.drain(true)
}

// gone has all that is dead be collected.
func (s *stage) gone() {
	dead := s.dead()
	run := func() {
		s.pass(grace + time.Hour)
		p := s.there()[s.random.IntN(len(s.nodes))]
		s.calm(p, "collect", func(ctx context.Context) error { return p.collect(ctx, 0.01) })
	}
	run()
	run()
	for _, key := range s.dead() {
		if slices.Contains(dead, key) {
			s.fault(fmt.Errorf("two runs after it was dead %s is still there", key))
		}
	}
	for n := 0; len(s.tombstones()) > 0 || len(s.dead()) > 0; n++ {
		if n == endings {
			s.fault(fmt.Errorf("after %d more runs there are tombstones of %v, and dead %v", n, s.tombstones(), s.dead()))
			return
		}
		run()
	}
}

// mended writes a record anew whose commit nobody was told of.
func (s *stage) mended(ctx context.Context, p *process, kind content.Kind, name string) error {
	switch kind {
	case content.KindInstance:
		return p.stow(ctx, name, []int{1, 2})
	case content.KindImage:
		return p.publish(ctx, name, []int{1, 2})
	case content.KindTree, content.KindTag:
		_, err := p.images.Remove(ctx, name)
		return err
	case content.KindVolume:
		return p.mendVolume(ctx, name)
	case content.KindSnapshot:
		_, err := p.volumes.RemoveSnapshot(ctx, name, content.VolumeID{})
		return err
	case content.KindLease:
		k, err := p.names.Lookup(ctx, kind, name, true)
		if err == nil {
			err = registry{p}.Delete(ctx, k.Record)
		}
		return err
	}
	return nil
}
