package volumes

import (
	"flag"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/simulations/soak"
)

// TestPromisesAreKept has two nodes of a farm, real volumes on real folders, records and
// segments in one bucket, and members that hold for them, go through all that a volume can
// go through, with calls that are lost, replies that are lost, nodes that are killed at any
// step, lose their power, stand still or are cut off; and holds the reference beside it after
// each deed.
func TestPromisesAreKept(t *testing.T) {
	setRapid(t, map[string]string{"rapid.checks": strconv.Itoa(soak.Of(25, 1000)), "rapid.steps": "100", "rapid.seed": soak.Of("12", "0")})
	total := &model{book: &book{deeds: map[string]int{}}}
	rapid.Check(t, func(r *rapid.T) {
		inBubble(t, func(t *testing.T) {
			w := run(t, r)
			total.flushes, total.taken, total.kills = total.flushes+w.flushes, total.taken+w.taken, total.kills+w.kills
			for name, n := range w.deeds {
				total.deeds[name] += n
			}
		})
	})
	for _, name := range slices.Sorted(maps.Keys(total.deeds)) {
		t.Logf("%6d %s", total.deeds[name], name)
	}
	t.Logf("%d flushes were acknowledged, %d takeovers, %d kills", total.flushes, total.taken, total.kills)
}

// setRapid sets flags until the end of a test. In CI the seed is the same each time, so that
// what a change breaks is the change's; a soak draws others, and prints them.
func setRapid(t *testing.T, flags map[string]string) {
	for name, value := range flags {
		before := flag.Lookup(name).Value.String()
		if before != flag.Lookup(name).DefValue { // somebody asks for another
			continue
		}
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flag.Set(name, before) })
	}
}

// inBubble is synctest.Test for a part of a test by rapid, which ends by a panic.
func inBubble(t *testing.T, do func(*testing.T)) {
	var ended any
	synctest.Test(t, func(t *testing.T) {
		defer func() {
			if ended = recover(); ended != nil && fmt.Sprintf("%T", ended) != "rapid.stopTest" && fmt.Sprintf("%T", ended) != "rapid.invalidData" {
				t.Logf("%v\n%s", ended, debug.Stack())
			}
		}()
		do(t)
	})
	if ended != nil {
		panic(ended)
	}
}

// run has one farm go through what rapid draws.
func run(t *testing.T, r *rapid.T) *model {
	f := newFarm(t)
	w := &model{book: newBook(f), steps: failpoints(t)}
	w.through(r, nil)
	return w
}

// through has the farm go through what rapid draws, and ends it.
func (w *model) through(r *rapid.T, more map[string]func(*rapid.T)) {
	defer w.farm.close()
	deeds := map[string]func(*rapid.T){
		"create": w.create, "attach": w.attach, "detach": w.detach, "move": w.move, "remove": w.remove,
		"write": w.write, "write more": w.write, "write yet more": w.write, "flush": w.flush, "churn": w.churn,
		"snapshot": w.snapshot, "forget": w.forget, "rollback": w.rollback, "go back": w.goBack, "go back again": w.goBack, "changes": w.changes, "read beside": w.readBeside, "promote": w.promote, "fold": w.fold, "fold again": w.fold,
		"resize": w.resize, "policy": w.change, "tend": w.tend, "kill": w.kill, "stand still": w.stand,
		"cut": func(r *rapid.T) {
			w.cut(w.member(r), rapid.Bool().Draw(r, "origin"), rapid.Bool().Draw(r, "members"))
		},
		"heal": func(*rapid.T) { w.heal() },
		"":     w.after,
	}
	maps.Copy(deeds, more)
	r.Repeat(deeds)
	w.last(r)
}
