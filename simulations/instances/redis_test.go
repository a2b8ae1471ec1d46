package instances

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// redis runs a redis that has on disk what it has acknowledged, and whose instance any farm may run.
const redis = `{"mesh":true,"command":["redis-server","--port","{port}","--dir","{data}","--appendonly","yes","--appendfsync","always","--save","","--auto-aof-rewrite-percentage","0","--daemonize","no"]}`

// values sets some keys to what nothing compresses.
func values(t *testing.T, n *lab.Node, i api.Instance, first, count int, seed uint64) {
	t.Helper()
	random, words := rand.New(rand.NewPCG(seed, 1)), strings.Builder{}
	for k := range count {
		fmt.Fprintf(&words, "SET key%05d ", first+k)
		for range 80 {
			words.WriteString(strconv.FormatUint(random.Uint64(), 36))
		}
		words.WriteByte('\n')
	}
	on(t, n, words.String(), "redis-cli", "-p", strconv.Itoa(i.Port))
}

// digest is that of all that a redis has, once it has read it.
func digest(t *testing.T, n *lab.Node, i api.Instance) string {
	t.Helper()
	for tick := time.Tick(50 * time.Millisecond); !strings.Contains(on(t, n, "", "redis-cli", "-p", strconv.Itoa(i.Port), "INFO", "persistence"), "\nloading:0"); {
		<-tick
	}
	return on(t, n, "", "redis-cli", "-p", strconv.Itoa(i.Port), "DEBUG", "DIGEST")
}

// TestRedisTravels: what a database has written is where it is run next, in another farm, too; and little more than what has
// changed is sent.
func TestRedisTravels(t *testing.T) {
	front, nodes := farms(t, "a", "b")
	a, b := nodes[0], nodes[1]
	i := reach(t, a, http.MethodPut, "db", strings.Replace(redis, `"--daemonize"`, `"--enable-debug-command","yes","--daemonize"`, 1), "provisioned")
	values(t, a, i, 0, 20_000, 1)
	want := digest(t, a, i)
	reach(t, a, http.MethodPost, "db/hibernate", "", "hibernated")
	i = reach(t, a, http.MethodPost, "db/wake", "", "provisioned")
	if got := digest(t, a, i); got != want {
		t.Errorf("it wakes with %s, want %s", got, want)
	}
	if _, err := ask(t, b, http.MethodPut, "db", ""); err == nil || !strings.Contains(err.Error(), "Conflict") {
		t.Errorf("provisioned on two nodes: %v", err)
	}
	was := cut{}
	move := func(from, to *lab.Node) {
		t.Helper()
		was, i = putAway(t, front, from, i, was), reach(t, to, http.MethodPut, "db", "", "provisioned")
		if got := digest(t, to, i); got != want {
			t.Errorf("on %s it has %s, want %s", to.Name, got, want)
		}
	}
	move(a, b)
	values(t, b, i, 0, 200, 2) // a hundredth of them
	want = digest(t, b, i)
	move(b, a)
	if _, err := ask(t, a, http.MethodPost, "db/obliterate", ""); err != nil {
		t.Fatal(err)
	}
	gone(t, a, "db")
	if _, err := ask(t, b, http.MethodPut, "db", ""); err == nil {
		t.Error("an obliterated one is provisioned as it was before")
	}
}
