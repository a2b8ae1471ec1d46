package instance

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestALife goes through all that an instance is, on two nodes: what its workload has written is there each time.
func TestALife(t *testing.T) {
	o := newOrigin()
	a, b := newWorld(t, o, t.TempDir(), 1), newWorld(t, o, t.TempDir(), 2)
	v := a.must("web", state.Provision, state.Provisioned, counting())
	if v.Port == 0 || v.PID == 0 || v.Epoch != 1 {
		t.Fatalf("%+v", v)
	}
	a.page(v, "add/one")
	a.must("web", state.Provision, state.Provisioned)             // it is so already,
	a.must("web", state.Provision, state.Provisioned, counting()) // and as it is asked for
	slept := a.must("web", state.Hibernate, state.Hibernated)
	if slept.Port != v.Port || slept.PID != 0 {
		t.Errorf("asleep: %+v, before %+v", slept, v)
	}
	woken := a.must("web", state.Wake, state.Provisioned)
	if woken.Port != v.Port {
		t.Errorf("port %d, and %d when it wakes", v.Port, woken.Port)
	}
	if got := a.page(woken, ""); got != "one stopped " {
		t.Errorf("it has %q", got)
	}
	if _, err := b.do("web", state.Provision); !errors.Is(err, content.Held) || !strings.Contains(err.Error(), "node 1") {
		t.Errorf("on another node: %v", err)
	}
	a.must("web", state.Deprovision, state.Unprovisioned)
	a.must("web", state.Deprovision, state.Unprovisioned)
	if left := a.folders(); len(left) > 0 {
		t.Errorf("there is left %q", left)
	}
	if r := o.record(t, "web"); r.State != catalog.Released || r.Head == nil || r.Saved == 0 {
		t.Errorf("%+v", r)
	}
	v = b.must("web", state.Provision, state.Provisioned) // as it was run before
	if got := b.page(v, ""); got != "one stopped stopped " || v.Epoch != 2 {
		t.Errorf("it has %q, under epoch %d", got, v.Epoch)
	}
	if _, err := a.do("web", state.Obliterate); !errors.Is(err, content.Held) {
		t.Errorf("obliterated by who does not have it: %v", err)
	}
	b.must("web", state.Obliterate, state.Unprovisioned)
	b.must("web", state.Obliterate, state.Unprovisioned)
	if _, err := o.Instance(t.Context(), "web"); !errors.Is(err, content.ErrNotFound) || len(b.folders()) > 0 {
		t.Errorf("there is left %q, and of the record: %v", b.folders(), err)
	}
	if got := a.page(a.must("web", state.Provision, state.Provisioned, counting()), ""); got != "" {
		t.Errorf("a new one has %q", got)
	}
}

// TestNothingIsReadTwice: what has not changed since it was written is not read when it is put away.
func TestNothingIsReadTwice(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	v := w.must("web", state.Provision, state.Provisioned, counting())
	if err := os.WriteFile(filepath.Join(v.Dir, "large"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("web", state.Deprovision, state.Unprovisioned)
	v = w.must("web", state.Provision, state.Provisioned)
	for tick := time.Tick(50 * time.Millisecond); ; <-tick {
		if _, err := os.Stat(filepath.Join(filepath.Dir(v.Dir), stowedFile)); err == nil {
			break
		}
	}
	before := o.read
	w.page(v, "add/one")
	w.must("web", state.Deprovision, state.Unprovisioned)
	if read := o.read - before; read > 1<<20 {
		t.Errorf("%d bytes are read and stored, of a few that have changed", read)
	}
	if got := w.page(w.must("web", state.Provision, state.Provisioned), ""); !strings.HasPrefix(got, "stopped one") {
		t.Errorf("it has %q", got)
	}
}

// TestWorkloadsOutliveTheNode: a start finds those that run, and their ports; what was begun goes on.
func TestWorkloadsOutliveTheNode(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	before := w.must("runs", state.Provision, state.Provisioned, counting())
	dies := w.must("dies", state.Provision, state.Provisioned, counting())
	sleeps := w.must("sleeps", state.Provision, state.Provisioned, counting())
	w.must("sleeps", state.Hibernate, state.Hibernated)
	w.page(before, "add/one")
	w.stop()
	if err := unix.Kill(dies.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w = w.again(o)
	if v := w.until("runs", state.Provisioned); v.PID != before.PID || v.Port != before.Port || w.page(v, "") != "one " {
		t.Errorf("%+v, before %+v", v, before)
	}
	if v := w.must("new", state.Provision, state.Provisioned, counting()); slices.Contains([]int{before.Port, dies.Port, sleeps.Port}, v.Port) {
		t.Errorf("port %d is given twice", v.Port)
	}
	for { // it was found dead, and is started again
		if v := w.until("dies", state.Provisioned); v.PID != dies.PID {
			if v.Port != dies.Port || v.Crashes != 1 {
				t.Errorf("%+v, before %+v", v, dies)
			}
			break
		}
	}
	w.must("runs", state.Hibernate, state.Hibernated)
	if b, err := os.ReadFile(filepath.Join(before.Dir, "log.txt")); string(b) != "one\nstopped\n" {
		t.Errorf("it has %q, %v", b, err)
	}
}

// TestTakenOver: who has had an instance stops it, and keeps what it has, and what it had not put away is no more the
// instance's.
func TestTakenOver(t *testing.T) {
	o := newOrigin()
	a, b := newWorld(t, o, t.TempDir(), 1), newWorld(t, o, t.TempDir(), 2)
	v := a.must("web", state.Provision, state.Provisioned, counting())
	a.page(v, "add/lost")
	a.stop() // it is paused
	taken := b.must("web", state.Provision, state.Provisioned, terms.Request{Spec: v.Spec, Takeover: true})
	if got := b.page(taken, ""); got != "" || taken.Epoch != 2 {
		t.Errorf("it has %q, under epoch %d", got, taken.Epoch)
	}
	a = a.again(o)
	if _, err := a.do("web", state.Deprovision); err == nil || !strings.Contains(err.Error(), "node 2 has it") {
		t.Errorf("deprovisioned by who has it no more: %v", err)
	}
	left := a.until("web", state.Orphaned)
	if b, err := os.ReadFile(filepath.Join(left.Dir, "log.txt")); string(b) != "lost\nstopped\n" {
		t.Errorf("the orphan has %q, %v", b, err)
	}
	if r := o.record(t, "web"); r.Head != nil || r.Epoch != 2 {
		t.Errorf("%+v", r)
	}
	a.must("web", state.Obliterate, state.Provisioned) // elsewhere
	if r := o.record(t, "web"); r.Epoch != 2 || len(a.folders()) > 0 {
		t.Errorf("%+v, and %q is left", r, a.folders())
	}
}

// TestOriginAway: nothing is deleted before it is put away, and what failed is done once the origin is back.
func TestOriginAway(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	v := w.must("web", state.Provision, state.Provisioned, counting())
	w.page(v, "add/one")
	o.setDown(content.ErrUnavailable)
	if _, err := w.do("other", state.Provision, counting()); err == nil {
		t.Error("provisioned, and nobody knows of it")
	}
	_, op, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{})
	if err != nil {
		t.Fatal(err)
	}
	for i := w.get("web"); ; {
		e, changed := i.now()
		if e.Tries > 0 && e.Left[0] == state.Dehydrate {
			break
		}
		<-changed
	}
	if b, err := os.ReadFile(filepath.Join(v.Dir, "log.txt")); string(b) != "one\nstopped\n" {
		t.Errorf("it has %q, %v", b, err)
	}
	again, joined, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{})
	if err != nil || joined.ID != op.ID || again.Detail == "" {
		t.Errorf("a second request: %+v, %+v, %v", again, joined, err)
	}
	o.setDown(nil)
	if _, err := w.cfg.Operations.Wait(t.Context(), op.ID); err != nil {
		t.Error(err)
	}
	if got := w.page(w.must("web", state.Provision, state.Provisioned), ""); got != "one stopped " {
		t.Errorf("it has %q", got)
	}
}

// TestWhatCantBeRun: a provision that fails says why, and leaves nothing.
func TestWhatCantBeRun(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1, func(c *Config) { c.Last = c.First + 1; c.Limits.Instances = 3 })
	run := func(command ...string) terms.Spec {
		return terms.Spec{Command: command, NoPort: true, Ready: "none"}
	}
	for said, spec := range map[string]terms.Spec{
		"no program no-such-program": run("no-such-program"),
		"first words":                {Command: []string{"sh", "-c", "echo first words; exit 1"}},
		"not ready in time":          {Command: []string{"sleep", "100"}, ReadyTimeout: 0.2},
		"no such file or":            {Command: []string{"sleep", "100"}, Config: "/no/such/file"},
		"this host has none":         {Command: []string{"sleep", "100"}, User: "nobody-at-all"},
		"want NAME=N or":             {Command: []string{"sleep", "100"}, Rlimits: []string{"nofile=many"}},
		"a process needs":            {From: "tree:x"},
		"not found":                  {From: "tree:x", Command: []string{"sleep", "100"}},
	} {
		if v, err := w.do("bad", state.Provision, terms.Request{Spec: spec}); err == nil || !strings.Contains(err.Error(), said) || v.State != "" && v.State != state.Unprovisioned {
			t.Errorf("%+v: %v, %s; want %q", spec, err, v.State, said)
		}
	}
	for _, e := range []state.Event{state.Hibernate, state.Wake} {
		if _, err := w.do("none", e); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("%s what is not there: %v", e, err)
		}
	}
	if _, err := o.Instance(t.Context(), "bad"); !errors.Is(err, content.ErrNotFound) || len(w.folders()) > 0 {
		t.Errorf("%q is left, and the record: %v", w.folders(), err)
	}
	for i := range 2 {
		w.must(fmt.Sprint("web", i), state.Provision, state.Provisioned, counting())
	}
	if _, err := w.do("web2", state.Provision, counting()); err == nil || !strings.Contains(err.Error(), "none is free") {
		t.Errorf("a third port of two: %v", err)
	}
	w.must("web0", state.Deprovision, state.Unprovisioned)
	w.must("web2", state.Provision, state.Provisioned, counting())
	w.must("still", state.Provision, state.Provisioned, terms.Request{Spec: run("sleep", "100")})
	if _, err := w.do("more", state.Provision, terms.Request{Spec: run("sleep", "100")}); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "3 instances") {
		t.Errorf("a fourth of three: %v", err)
	}
}

// TestCrashesAreFollowed: a workload that ends by itself is started again, and one that always does less and less often.
func TestCrashesAreFollowed(t *testing.T) {
	w := newWorld(t, newOrigin(), t.TempDir(), 1)
	v := w.must("web", state.Provision, state.Provisioned, counting())
	w.page(v, "add/one")
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	crashed := w.until("web", state.Crashed)
	if crashed.Crashes != 1 || !strings.Contains(crashed.Detail, "killed") {
		t.Errorf("%+v", crashed)
	}
	if again := w.until("web", state.Provisioned); again.PID == v.PID || again.Port != v.Port || w.page(again, "") != "one " {
		t.Errorf("%+v, before %+v", again, v)
	}
	w.must("web", state.Deprovision, state.Unprovisioned)
	if pause(1) >= pause(6) || pause(100) > 10*time.Minute {
		t.Errorf("it waits %v, then %v, and %v in the end", pause(1), pause(6), pause(100))
	}
}

// TestIdleOnesGo: an instance that nobody uses is put away, and one that somebody is connected to is not.
func TestIdleOnesGo(t *testing.T) {
	w := newWorld(t, newOrigin(), t.TempDir(), 1)
	used, unused, probed := counting(), counting(), counting()
	used.Idle, unused.Idle, probed.Idle = 1, 1, 1
	probed.Probe = []string{"test", "-e", "log.txt"}
	v := w.must("used", state.Provision, state.Provisioned, used)
	conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", v.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w.must("probed", state.Provision, state.Provisioned, probed)
	w.must("unused", state.Provision, state.Provisioned, unused)
	w.until("unused", state.Unprovisioned)
	for _, name := range []string{"used", "probed"} {
		if v, err := w.Get(t.Context(), name); err != nil || v.State != state.Provisioned {
			t.Errorf("%s is %s, %v", name, v.State, err)
		}
	}
}

// TestSlowProbes: a crash is followed at once, whatever a probe waits for.
func TestSlowProbes(t *testing.T) {
	w := newWorld(t, newOrigin(), t.TempDir(), 1)
	slow := counting()
	slow.Idle, slow.Probe = 1, []string{"sh", "-c", "echo > begun; sleep 25; echo > over"}
	v := w.must("web", state.Provision, state.Provisioned, slow)
	for tick := time.Tick(20 * time.Millisecond); ; <-tick {
		if _, err := os.Stat(filepath.Join(v.Dir, "begun")); err == nil {
			break
		}
	}
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.until("web", state.Crashed)
	if _, err := os.Stat(filepath.Join(v.Dir, "over")); err == nil {
		t.Error("it was known only once the probe had ended")
	}
}

// TestWhoWaitsIsTold: with pools of none what has failed is the answer, as what it is.
func TestWhoWaitsIsTold(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1, func(c *Config) { c.Provisions, c.Hydrations, c.Last = 0, 0, c.First-1 })
	for _, x := range []struct {
		spec terms.Spec
		want error
	}{
		{terms.Spec{Command: []string{"no-such-program"}, NoPort: true}, content.ErrInvalid},
		{terms.Spec{Command: []string{"false"}, NoPort: true, Ready: "log:x"}, content.ErrUnavailable},
		{terms.Spec{Command: []string{"sleep", "1000"}}, content.ErrUnavailable}, // no port
		{terms.Spec{Command: []string{"sleep", "1000"}, From: "tree:none"}, content.ErrNotFound},
	} {
		if _, err := w.do("web", state.Provision, terms.Request{Spec: x.spec}); !errors.Is(err, x.want) {
			t.Errorf("%+v: %v, want %v", x.spec, err, x.want)
		}
	}
}

// groups is a folder for control groups.
func groups(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "cgroup")
	if err == nil {
		err = unix.Mount("none", root, "cgroup2", 0, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(root, fmt.Sprint("grange-test-", os.Getpid()))
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(group), unix.Unmount(root, unix.MNT_DETACH), os.Remove(root)); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	return group
}

// TestControlGroups: what a workload leaves behind ends with it.
func TestControlGroups(t *testing.T) {
	group := groups(t)
	w := newWorld(t, newOrigin(), t.TempDir(), 1, func(c *Config) { c.Cgroup = group })
	v := w.must("web", state.Provision, state.Provisioned, terms.Request{Spec: terms.Spec{Command: []string{"sh", "-c", "mkdir " + group + "/web/sub; setsid env -i /bin/sleep 1000 & echo $! > " + group + "/web/sub/cgroup.procs; exec sleep 1000"}, Ready: "none", Memory: 64 << 20}})
	for _, path := range []string{"web", "web/sub"} { // its own group, and one that it has made
		for tick, pids := time.Tick(10*time.Millisecond), []string(nil); len(pids) != 1 || (pids[0] == fmt.Sprint(v.PID)) != (path == "web"); <-tick {
			b, err := os.ReadFile(filepath.Join(group, path, "cgroup.procs"))
			if pids = strings.Fields(string(b)); ignore(err, os.ErrNotExist) != nil || len(pids) > 2 {
				t.Fatalf("in %s are %q, %v, beside %d", path, b, err, v.PID)
			}
		}
	}
	w.must("web", state.Deprovision, state.Unprovisioned)
	if _, err := os.Stat(filepath.Join(group, "web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its group: %v", err)
	}
}

// TestManyAtOnce: with few places and with none at all, each gets through what is asked of it.
func TestManyAtOnce(t *testing.T) {
	many := soak.Of(12, 100)
	for _, places := range []int{2, 0} {
		o := newOrigin()
		w := newWorld(t, o, t.TempDir(), 1, func(c *Config) { c.Provisions, c.Hydrations = places, places })
		var all sync.WaitGroup
		for n := range many {
			all.Go(func() {
				name, run := fmt.Sprint("w", n), terms.Request{Spec: terms.Spec{Command: []string{"sleep", "1000"}, Ready: "none", Grace: 5}}
				for _, x := range []struct {
					e    state.Event
					want state.State
				}{{state.Provision, state.Provisioned}, {state.Hibernate, state.Hibernated}, {state.Wake, state.Provisioned}, {state.Deprovision, state.Unprovisioned}, {state.Provision, state.Provisioned}} {
					if v, err := w.do(name, x.e, run); err != nil || v.State != x.want {
						t.Errorf("%s %s: %s, %v", x.e, name, v.State, err)
					}
				}
			})
		}
		all.Wait()
		ports := map[int]bool{}
		for _, v := range w.List() {
			ports[v.Port] = true
		}
		if len(ports) != many {
			t.Errorf("%d instances have %d ports", many, len(ports))
		}
	}
}

// TestAnEndIsAlwaysHonoured: who has enough of a provision that takes long need not wait for it.
func TestAnEndIsAlwaysHonoured(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	slow := terms.Request{Spec: terms.Spec{Command: []string{"sleep", "1000"}}}
	for _, end := range []func(op string) error{
		func(string) error { _, err := w.do("web", state.Deprovision); return err },
		func(string) error { _, err := w.do("web", state.Obliterate); return err },
		func(op string) error { _, err := w.cfg.Operations.Cancel(t.Context(), op); return err },
	} {
		_, op, err := w.Do(t.Context(), "web", state.Provision, slow)
		if err != nil {
			t.Fatal(err)
		}
		for e, changed := w.get("web").now(); len(e.Left) == 0 || e.Left[0] != state.Await; e, changed = w.get("web").now() {
			<-changed
		}
		if err := end(op.ID); err != nil {
			t.Error(err)
		}
		for w.get("web") != nil {
			<-time.After(10 * time.Millisecond)
		}
	}
	if len(w.folders()) > 0 {
		t.Errorf("%q is left", w.folders())
	}
}
