package crowds_test

import (
	"testing"

	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/plan"
)

// crowd is what came of requests for one run.
type crowd struct {
	t   *testing.T
	of  *crowds.Of[string]
	got map[plan.Peer]plan.Peer
	now map[plan.Peer]func(sure bool)
}

const waits = "waits"

func newCrowd(t *testing.T, busy int) *crowd {
	return &crowd{t, crowds.New[string]("self", busy), map[plan.Peer]plan.Peer{}, map[plan.Peer]func(bool){}}
}

func (c *crowd) begin(run string, r crowds.Request) {
	c.got[r.Asker] = waits
	r.Then = func(to plan.Peer) { c.got[r.Asker] = to }
	c.now[r.Asker] = c.of.Begin(run, r)
}

func (c *crowd) want(p, want plan.Peer) {
	c.t.Helper()
	if got := c.got[p]; got != want {
		c.t.Fatalf("%s gets %q, want %q", p, got, want)
	}
}

func bulk(p plan.Peer) crowds.Request { return crowds.Request{Asker: p, HasTime: true, Held: true} }

// TestOneIsSentARun: the others wait for it, and are referred to it once.
func TestOneIsSentARun(t *testing.T) {
	c := newCrowd(t, 0)
	for _, p := range []plan.Peer{"a", "b", "c", "d"} {
		c.begin("run", bulk(p))
	}
	c.want("a", "")
	c.want("b", waits)
	c.begin("run", crowds.Request{Asker: "guest", Held: true})
	c.want("guest", "")
	c.begin("other", bulk("x"))
	c.want("x", "")
	c.now["d"](false)
	c.want("d", "") // has waited for long
	c.of.End("run", "d", false)
	c.of.End("run", "guest", false)
	c.want("b", waits)
	c.of.End("run", "a", true)
	c.want("b", "")
	c.want("c", "a")
	c.begin("run", bulk("c"))
	c.want("c", waits) // in vain
	c.of.End("run", "b", true)
	c.want("c", "")
	c.begin("run", bulk("e"))
	c.want("e", "a")
	c.begin("run", bulk("f"))
	c.want("f", "b")
}

// TestNobodyWaitsForWhatIsNotHere: who is to bring a run in may wait for one that waits here.
func TestNobodyWaitsForWhatIsNotHere(t *testing.T) {
	c := newCrowd(t, 0)
	for _, p := range []plan.Peer{"a", "b"} {
		c.begin("run", crowds.Request{Asker: p, HasTime: true})
		c.want(p, "")
	}
}

func TestBusyRefersWhoHasTime(t *testing.T) {
	c := newCrowd(t, 2)
	c.begin("1", bulk("a"))
	c.begin("2", bulk("b"))
	c.begin("3", bulk("c"))
	c.want("c", "self")
	c.begin("3", bulk("c"))
	c.want("c", "") // nobody else has it
	c.begin("3", crowds.Request{Asker: "guest", Held: true})
	c.want("guest", "")
	c.of.End("3", "c", true)
	c.of.End("3", "guest", false)
	c.begin("3", bulk("e"))
	c.want("e", "c") // also when it is being sent to nobody any more
	c.of.End("2", "b", true)
	c.begin("3", bulk("f"))
	c.want("f", "")
}

// TestABusyMemberIsWaitedFor: one more request that is answered has none answered sooner.
func TestABusyMemberIsWaitedFor(t *testing.T) {
	c := newCrowd(t, 2)
	c.begin("1", bulk("a"))
	for _, p := range []plan.Peer{"b", "c", "d"} {
		c.begin("1", bulk(p))
	}
	c.begin("2", bulk("e"))
	for _, p := range []plan.Peer{"b", "c"} {
		c.now[p](false)
		c.want(p, waits)
	}
	c.now["c"](true)
	c.want("c", "")
	c.of.End("1", "c", false)
	c.want("b", waits)
	c.of.End("2", "e", true)
	c.want("b", "")
	c.of.End("1", "b", true)
	c.want("d", "b")
}
