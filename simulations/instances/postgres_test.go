package instances

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// postgres runs a database as the user that its package has made for it, which makes its files at the first start.
const postgres = `{"mesh":true,"user":"postgres","ready":"log:ready to accept connections","command":["/bin/sh","-c","PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH; [ -e PG_VERSION ] || initdb -D . -A trust -U postgres; rm -f postmaster.pid; exec postgres -D . -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="]}`

// sql asks the database of an instance.
func sql(t *testing.T, n *lab.Node, i api.Instance, query string) string {
	t.Helper()
	return on(t, n, "", "psql", "-h", "127.0.0.1", "-p", strconv.Itoa(i.Port), "-U", "postgres", "-At", "-c", query)
}

// TestPostgresTravels: a database of another user than the node's has on the next node what it had, with the owners and modes
// that it insists on; and after its processes were killed what it had committed.
func TestPostgresTravels(t *testing.T) {
	front, nodes := farms(t, "a", "b")
	a, b := nodes[0], nodes[1]
	i := reach(t, a, http.MethodPut, "pg", postgres, "provisioned")
	pgbench := func(args ...string) {
		t.Helper()
		on(t, a, "", append(append([]string{"pgbench", "-h", "127.0.0.1", "-p", strconv.Itoa(i.Port), "-U", "postgres"}, args...), "postgres")...)
	}
	pgbench("-i", "-q", "-s", "2")
	pgbench("-c", "4", "-t", "100")
	const sums = "select sum(abalance), (select sum(tbalance) from pgbench_tellers), (select count(*) from pgbench_history) from pgbench_accounts"
	want := sql(t, a, i, sums)
	if words := strings.Split(strings.TrimSpace(want), "|"); len(words) != 3 || words[0] != words[1] || words[2] != "400" {
		t.Fatalf("it has %q", want)
	}
	on(t, a, "", "kill", "-9", strconv.Itoa(i.PID))
	for tick := time.Tick(50 * time.Millisecond); ; <-tick {
		again, err := ask(t, a, http.MethodGet, "pg", "")
		if err != nil {
			t.Fatal(err)
		}
		if again.State == "provisioned" && again.PID != i.PID {
			i = again
			break
		}
	}
	if got := sql(t, a, i, sums); got != want {
		t.Errorf("after it was killed it has %q, want %q", got, want)
	}
	was := cut{}
	for turn, n := range []*lab.Node{a, b} {
		if turn > 0 { // a hundredth of the accounts, beside their history
			i = reach(t, n, http.MethodPut, "pg", "", "provisioned")
			if got := sql(t, n, i, sums); got != want {
				t.Errorf("on the other node it has %q, want %q", got, want)
			}
			sql(t, n, i, "update pgbench_accounts set abalance = abalance + 1 where aid <= 2000; checkpoint")
		}
		was = putAway(t, front, n, i, was)
	}
}
