package gauges

import (
	"testing"
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/volumes/terms"
)

// TestHowLongTheBucketLacksSomething: from when it was seen first, until the bucket has got all
// again, though something else is lacking by then.
func TestHowLongTheBucketLacksSomething(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := New(Config{Now: func() time.Time { return now }})
	behind := func(after time.Duration, views ...terms.View) time.Duration {
		now = now.Add(after)
		return g.volumes(views).behind
	}
	old := time.Unix(1000, 0)
	idle, writing := terms.View{Name: "idle", FoldedAt: old}, terms.View{Name: "busy", FoldedAt: old, Lag: 5}
	folded := writing
	folded.FoldedAt = now
	for i, x := range []struct {
		got, want time.Duration
	}{
		{behind(0, idle), 0},
		{behind(time.Minute, idle, writing), 0}, // however long ago the bucket got something
		{behind(time.Minute, idle, writing), time.Minute},
		{behind(time.Hour, idle, writing), time.Hour + time.Minute},
		{behind(time.Minute, folded), 0},
		{behind(time.Minute, folded, terms.View{Name: "new", Lag: 1}), time.Minute},
		{behind(time.Minute, terms.View{Name: "busy", FoldedAt: now}, terms.View{Name: "new", Lag: 1}), time.Minute},
		{behind(time.Minute), 0},
	} {
		if x.got != x.want {
			t.Errorf("at look %d it is %s, want %s", i, x.got, x.want)
		}
	}
	if r := g.volumes([]terms.View{{Short: true}, {Degraded: old}, {Degraded: old}}); r.short != 1 || r.degraded != 2 {
		t.Errorf("%+v", r)
	}
}

// TestWarningsAreFew whatever they are about: what has a name is counted with the others of its kind.
func TestWarningsAreFew(t *testing.T) {
	got := warnings([]node.Warning{{About: "volume:web1"}, {About: "volume:web2"}, {About: "mount /srv/site"}, {About: "farm"}, {About: "origin gc"}})
	for about, n := range map[string]float64{"volume": 2, "reader": 1, "farm": 1, "origin gc": 1, "mesh": 0} {
		if v, ok := got[about]; !ok || v != n {
			t.Errorf("%s is %v", about, v)
		}
	}
	if len(got) != len(abouts()) {
		t.Errorf("%v", got)
	}
}
