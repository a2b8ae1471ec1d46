package mesh

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// refusalTimeout is how long a command may take to find out that it can't work.
const refusalTimeout = 30 * time.Second

// refusal is a command that must fail, with the words that its error must hold.
type refusal struct {
	what string
	args []string
	env  []string
	says []string
}

// refuse runs commands that must fail by themselves on a host, with more flags.
func refuse(t *testing.T, l *lab.Lab, host *netns.Host, cases []refusal, more ...string) {
	t.Helper()
	for _, c := range cases {
		ctx, cancel := context.WithTimeout(t.Context(), refusalTimeout)
		said, code, err := l.Exec(ctx, host, c.env, append(c.args, more...)...)
		cancel()
		_, last, _ := strings.Cut(said, "grange: ") // before it, a node may have logged
		switch {
		case err != nil:
			t.Errorf("%s: %v: %s", c.what, err, said)
		case code == 0:
			t.Errorf("%s: exit code 0: %s", c.what, said)
		default:
			t.Logf("%s: %s", c.what, strings.TrimSpace(last))
		}
		for _, word := range c.says {
			if !strings.Contains(last, word) {
				t.Errorf("%s: %q does not say %q", c.what, last, word)
			}
		}
	}
}

// onHost makes a host for commands that start no node.
func onHost(t *testing.T, l *lab.Lab) *netns.Host {
	t.Helper()
	h, err := l.Net.Host(t.Context(), "strangers")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// founder is the command line of a node that founds a mesh in a new folder.
func founder(t *testing.T, h *netns.Host, more ...string) []string {
	t.Helper()
	return append([]string{"node", "--data", t.TempDir(), "--listen", fmt.Sprintf("/ip4/%s/tcp/4001", h.Addr())}, more...)
}

// TestBadInputIsRefused: what can't be done fails at once with an error that says
// what to do, and leaves nothing behind.
func TestBadInputIsRefused(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	path, _ := disk(t, l.Dir, 8<<20)
	run(t, n, "image", "import", "taken", path)
	cut, huge := badImages(t, l.Dir, path)
	refuse(t, l, n.Host, []refusal{
		{what: "unknown image", args: []string{"volume", "create", "v", "--from", "image:never"}, says: []string{"never", "not found"}},
		{what: "unknown image to show", args: []string{"image", "show", "never"}, says: []string{"never", "not found"}},
		{what: "unknown volume", args: []string{"volume", "show", "never"}, says: []string{"never", "not found"}},
		{what: "bad name of an image", args: []string{"image", "import", "../up", path}, says: []string{"../up", "letters, digits"}},
		{what: "bad name of a volume", args: []string{"volume", "create", "a b", "--size", "1MiB"}, says: []string{"a b", "letters, digits"}},
		{what: "bad reference", args: []string{"volume", "create", "v", "--from", "disk:taken"}, says: []string{"disk:taken", "want image, volume or snapshot"}},
		{what: "no such source", args: []string{"image", "import", "v", "/no/such/file"}, says: []string{"/no/such/file", "no such file"}},
		{what: "truncated qcow2", args: []string{"image", "import", "v", cut}, says: []string{"cut.qcow2", "cut short"}},
		{what: "image over the limit", args: []string{"image", "import", "v", huge}, says: []string{"huge.qcow2", "the limit is 17592186044416"}},
		{what: "volume over the limit", args: []string{"volume", "create", "v", "--size", "17TiB"}, says: []string{"17592186044416"}},
		{what: "volume smaller than its image", args: []string{"volume", "create", "v", "--from", "image:taken", "--size", "4MiB"}, says: []string{"8388608", "4194304"}},
		{what: "name taken", args: []string{"image", "import", "taken", path}, says: []string{"taken", "--replace"}},
		{what: "bad size", args: []string{"volume", "create", "v", "--size", "much"}, says: []string{"much", "10GiB"}},
		{what: "unknown image to warm everywhere", args: []string{"image", "warm", "never", "--all"}, says: []string{"never", "not found"}},
		{what: "pattern to warm", args: []string{"image", "warm", "ta*", "--all"}, says: []string{"ta*", "letters, digits"}},
		{what: "why of an unknown volume", args: []string{"why", "never"}, says: []string{"never", "not found"}},
		{what: "ping of nobody", args: []string{"ping", "nobody"}, says: []string{"nobody", "grange mesh members"}},
		{what: "ping of oneself", args: []string{"ping", get[api.Status](t, n, "/api/status").Self.ID}, says: []string{"this node itself"}},
		{what: "ping of a stranger", args: []string{"ping", "/ip4/127.0.0.1/tcp/4001"}, says: []string{"/p2p/ID"}},
		{what: "ping without an answer", args: []string{"ping", "nobody", "--count=0"}, says: []string{"count", ">= 1"}},
	}, "--data", n.Data)
	if images := get[[]api.Image](t, n, "/api/images"); len(images) != 1 || images[0].Version != 1 {
		t.Errorf("images after the refusals: %+v", images)
	}
	if volumes := get[[]api.Volume](t, n, "/api/volumes"); len(volumes) != 0 {
		t.Errorf("volumes after the refusals: %+v", volumes)
	}
	if left, err := os.ReadDir(filepath.Join(n.Data, "tmp")); err == nil && len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

// badImages makes a qcow2 file that lacks its second half, and one of 17 TiB.
func badImages(t *testing.T, dir, path string) (cut, huge string) {
	t.Helper()
	cut, huge = filepath.Join(dir, "cut.qcow2"), filepath.Join(dir, "huge.qcow2")
	for _, args := range [][]string{
		{"convert", "-O", "qcow2", path, cut},
		{"create", "-q", "-f", "qcow2", huge, "17T"},
	} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	info, err := os.Stat(cut)
	if err == nil {
		err = os.Truncate(cut, info.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cut, huge
}

// TestBadOriginIsRefused: a store that can't be used is told apart by what is
// wrong with it, and nothing is written to it.
func TestBadOriginIsRefused(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	start(t, l, store.URL, "a") // the store is this mesh's from now on
	h := onHost(t, l)
	other, gone := strings.Replace(store.URL, "/farm?", "/other?", 1), strings.Replace(store.URL, ":7071", ":7099", 1)
	store.Meddle(ignoreConditions)
	refuse(t, l, h, []refusal{
		{what: "conditions ignored", args: founder(t, h, "--origin", other), says: []string{"other", "if-none-match", "if-match", "honours conditional writes"}},
	})
	store.Meddle(refuseWrites)
	refuse(t, l, h, []refusal{
		{what: "read-only store", args: founder(t, h, "--origin", other), says: []string{"other", "read-only", "grant the key"}},
	})
	store.Meddle(nil)
	refuse(t, l, h, []refusal{
		{what: "store of another mesh", args: founder(t, h, "--origin", store.URL), says: []string{"mesh"}},
		{what: "wrong secret", args: founder(t, h, "--origin", other), env: []string{"AWS_SECRET_ACCESS_KEY=wrong"}, says: []string{"other", "secret", "AWS_SECRET_ACCESS_KEY"}},
		{what: "unknown key", args: founder(t, h, "--origin", other), env: []string{"AWS_ACCESS_KEY_ID=nobody"}, says: []string{"other", "credentials"}},
		{what: "missing bucket", args: founder(t, h, "--origin", strings.Replace(store.URL, "images/", "absent/", 1)), says: []string{"absent", "bucket"}},
		{what: "no such scheme", args: founder(t, h, "--origin", "ftp://host/x"), says: []string{"ftp", "s3, file or https"}},
		{what: "store out of reach", args: founder(t, h, "--origin", gone), says: []string{"--origin", "7099", "unavailable"}},
		{what: "relative folder", args: founder(t, h, "--origin", "file://images"), says: []string{"file:///ABSOLUTE/FOLDER"}},
	})
	away, err := l.StartAs(t.Context(), "publisher", "a", store.URL)
	if err == nil {
		err = away.Stop()
	}
	if err == nil { // a member starts without its store
		err = away.Impersonate(t.Context(), nil, l.Binary, "node", "--data", away.Data, "--listen", fmt.Sprintf("/ip4/%s/tcp/4001", away.Host.Addr()), "--origin", gone)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, away, "status", "--wait", refusalTimeout.String())
	path, _ := disk(t, l.Dir, 8<<20)
	refuse(t, l, away.Host, []refusal{
		{what: "unreachable store", args: []string{"image", "import", "v", path, "--data", away.Data}, says: []string{"7099", "unavailable"}},
		{what: "doctor", args: []string{"doctor", "--data", away.Data}, says: []string{"findings need a look"}},
	})
	if n := store.Taken("other"); n > 4096 {
		t.Errorf("%d bytes were written to stores that were refused", n)
	}
}

// ignoreConditions answers as a store that knows no conditions: each write
// succeeds.
func ignoreConditions(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
	answer := httptest.NewRecorder()
	store.ServeHTTP(answer, r)
	if answer.Code == http.StatusPreconditionFailed {
		w.Header().Set("ETag", `"00000000000000000000000000000000"`)
		return
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	answer.Body.WriteTo(w)
}

// refuseWrites answers as a store does to one who may only read.
func refuseWrites(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		store.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
}

// TestBadStartIsRefused: a node that can't start says why.
func TestBadStartIsRefused(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "a", "", "--api", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	h, self := n.Host, n.Host.Addr()
	listen := func(port int) string { return fmt.Sprintf("/ip4/%s/tcp/%d", self, port) }
	fresh := func(more ...string) []string { return append([]string{"node", "--data", t.TempDir()}, more...) }
	token := func(more ...string) string {
		return run(t, n, append([]string{"token", "create", "--role", "node"}, more...)...)
	}

	config := func(text string) []string {
		path := filepath.Join(t.TempDir(), "grange.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return fresh("--listen", listen(4101), "--config", path)
	}
	revoked := token()
	run(t, n, "token", "revoke", get[[]api.Token](t, n, "/api/tokens")[0].ID)
	used, expired := token(), token("--lifetime", "1ms")
	second, err := l.Start(t.Context(), "a", "", "--join", used)
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, l, h, []refusal{
		{what: "second daemon", args: []string{"node", "--data", n.Data, "--listen", listen(4101)}, says: []string{n.Data, "another grange has it open"}},
		{what: "swarm address in use", args: fresh("--listen", listen(4001)), says: []string{"--listen", "4001", "in use"}},
		{what: "farm address in use", args: fresh("--listen", listen(4101), "--farm-bind", fmt.Sprintf("%s:7946", self)), says: []string{"7946", "in use"}},
		{what: "API address in use", args: fresh("--listen", listen(4101), "--api", "127.0.0.1:8080"), says: []string{"--api", "8080", "in use"}},
		{what: "address of another host", args: fresh("--listen", "/ip4/10.99.99.99/tcp/4001"), says: []string{"10.99.99.99", "cannot assign"}},
		{what: "no multiaddr", args: fresh("--listen", "10.0.0.5:4001"), says: []string{"10.0.0.5:4001", "/ip4/10.0.0.5/tcp/4001"}},
		{what: "quota too small", args: fresh("--listen", listen(4101), "--quota", "1MiB"), says: []string{"--quota", "256 MiB"}},
		{what: "expired token", args: fresh("--join", expired), says: []string{"--join", "expired"}},
		{what: "used token", args: fresh("--listen", listen(4101), "--join", used), says: []string{"--join", "used"}},
		{what: "revoked token", args: fresh("--listen", listen(4101), "--join", revoked), says: []string{"--join", "revoked"}},
		{what: "no token", args: fresh("--join", "grange1nonsense"), says: []string{"--join", "token", "copy it whole"}},
		{what: "cut token", args: fresh("--join", used[:len(used)-8]), says: []string{"--join", "token", "copy it whole"}},
		{what: "config without sense", args: config("{{{"), says: []string{"grange.yaml"}},
		{what: "config with an unknown setting", args: config("quotas: 1GiB"), says: []string{"grange.yaml", "quotas"}},
		{what: "config with a bad value", args: config("quota: lots"), says: []string{"quota", "lots", "10GiB"}},
		{what: "config that is not there", args: fresh("--config", "/no/such/config"), says: []string{"/no/such/config"}},
		{what: "token of another mesh", args: otherMesh(t, l, h, token()), says: []string{"--join", "empty --data"}},
	})
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second.Data, "membership"), []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuse(t, l, h, []refusal{
		{what: "rotten membership", args: []string{"node", "--data", second.Data}, says: []string{"membership", "corrupt", "backup"}},
	})
}

// otherMesh is the command line of a node that has founded a mesh and is told to
// join one.
func otherMesh(t *testing.T, l *lab.Lab, h *netns.Host, token string) []string {
	t.Helper()
	data := t.TempDir()
	args := []string{"node", "--data", data, "--listen", "/ip4/127.0.0.1/tcp/0"}
	ctx, stop := context.WithCancel(t.Context())
	founded := make(chan error, 1)
	go func() {
		_, _, err := l.Exec(ctx, h, nil, args...)
		founded <- err
	}()
	until(t, "it has founded a mesh", func(context.Context) bool {
		_, err := os.Stat(filepath.Join(data, "membership"))
		return err == nil
	})
	stop()
	<-founded // it was killed, which is no news
	return append(args, "--join", token)
}
