package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
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
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// TestVolumesOfOthers: a machine that never came to have a volume leaves no record, by which its name would have the volume
// that is there already, and obliterate would purge it.
func TestVolumesOfOthers(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	i := newHosted(w.Hub, entry{Name: "db", Spec: terms.Spec{Runtime: terms.VM, From: "image:x"}, Instance: state.Instance{State: state.Provisioning, Left: []state.Step{state.Release}, Undoing: true}})
	if err := errors.Join(i.claim(t.Context()), i.release(t.Context())); err != nil {
		t.Fatal(err)
	}
	if r, err := o.Instance(t.Context(), "db"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("there is a record %+v, %v", r, err)
	}
}

// TestLeftBehind: what a workload has left when it has crashed ends before its data are put away, or it is started anew.
func TestLeftBehind(t *testing.T) {
	group := groups(t)
	w := newWorld(t, newOrigin(), t.TempDir(), 1, func(c *Config) { c.Cgroup = group })
	v := w.must("web", state.Provision, state.Provisioned, terms.Request{Spec: terms.Spec{Command: []string{"sh", "-c", "setsid env -i /bin/sleep 1000 & echo up; exec sleep 1000"}, Ready: "log:up"}})
	pids := func() []string {
		b, err := os.ReadFile(filepath.Join(group, "web", "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(b))
	}
	before := pids()
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for v := w.until("web", state.Provisioned); v.Crashes == 0; v = w.until("web", state.Provisioned) {
		<-time.After(10 * time.Millisecond)
	}
	for _, pid := range pids() {
		if slices.Contains(before, pid) {
			t.Errorf("%s is left of %q", pid, before)
		}
	}
	w.must("web", state.Hibernate, state.Hibernated)
	w.must("web", state.Wake, state.Provisioned)
	w.must("web", state.Deprovision, state.Unprovisioned)
}

// TestAskedAgain: who asks again and again for what can't be done yet does not put it off, nor what is looked at in between.
func TestAskedAgain(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	w.must("web", state.Provision, state.Provisioned, counting())
	_, changed := w.get("web").now()
	w.must("web", state.Provision, state.Provisioned, counting())
	select {
	case <-changed:
		t.Error("what is so already has changed it")
	default:
	}
	o.setDown(content.ErrUnavailable)
	if _, _, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{}); err != nil {
		t.Fatal(err)
	}
	i := w.get("web")
	failed := func() bool { e, _ := i.now(); return e.Tries > 2 }
	for !failed() {
		_, changed := i.now()
		<-changed
	}
	o.setDown(nil)
	for n := 0; w.get("web") != nil; n++ {
		if _, _, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{}); err != nil || n > 2000 {
			t.Fatalf("asked %d times, and not done: %v", n, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestWhatCantBePutAway can be given up for good.
func TestWhatCantBePutAway(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	v := w.must("web", state.Provision, state.Provisioned, counting())
	o.mu.Lock()
	o.full = content.ErrNoSpace
	o.mu.Unlock()
	if _, _, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{}); err != nil {
		t.Fatal(err)
	}
	for i := w.get("web"); ; {
		e, changed := i.now()
		if e.Tries > 0 {
			break
		}
		<-changed
	}
	if _, err := os.Stat(v.Dir); err != nil {
		t.Error(err)
	}
	w.must("web", state.Obliterate, state.Unprovisioned)
}

// TestRecordsWithoutInstances: a record that names this node, which has nothing of it, can be deleted.
func TestRecordsWithoutInstances(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	lost := newHosted(w.Hub, entry{Name: "web", Spec: counting().Spec})
	if err := lost.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.must("web", state.Obliterate, state.Unprovisioned)
	if _, err := o.Instance(t.Context(), "web"); !errors.Is(err, content.ErrNotFound) {
		t.Error(err)
	}
}

// TestHowItWasRun is kept, also where it is provisioned again, and nothing said, before all of it is gone.
func TestHowItWasRun(t *testing.T) {
	w := newWorld(t, newOrigin(), t.TempDir(), 1)
	spec, err := counting().WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	i := newHosted(w.Hub, entry{Name: "web", Spec: spec, Disk: content.VolumeID{1}, Instance: state.Instance{State: state.Unprovisioned, Crashes: 3}})
	if _, err := i.ask(state.Provision, terms.Request{}); err != nil {
		t.Fatal(err)
	}
	if e, _ := i.now(); e.Spec.IsZero() || e.Disk != (content.VolumeID{}) || e.Crashes > 0 {
		t.Errorf("%+v", e)
	}
}

// TestOldRecords: a record of before this node has claimed the instance does not make it another's.
func TestOldRecords(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	w.must("web", state.Provision, state.Provisioned, counting())
	w.must("web", state.Deprovision, state.Unprovisioned)
	o.mu.Lock()
	old := o.records["web"]
	o.mu.Unlock()
	w.must("web", state.Provision, state.Provisioned)
	o.mu.Lock()
	o.records["web"] = old
	o.mu.Unlock()
	if _, _, err := w.get("web").own(t.Context()); !errors.Is(err, content.ErrUnavailable) || errors.Is(err, content.ErrFenced) {
		t.Error(err)
	}
}

// TestUnknownRecords: an instance of which there is neither a record nor that of its deletion is not said to be another's.
func TestUnknownRecords(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	w.must("web", state.Provision, state.Provisioned, counting())
	o.mu.Lock()
	delete(o.records, "web")
	o.mu.Unlock()
	if _, _, err := w.get("web").own(t.Context()); !errors.Is(err, content.ErrUnavailable) || errors.Is(err, content.ErrFenced) {
		t.Error(err)
	}
}

// TestBeingMade: what a crash has left of an instance whose first entry was being written is nothing.
func TestBeingMade(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "web"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "web", durable.TempPrefix+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	newWorld(t, newOrigin(), dir, 1).must("web", state.Provision, state.Provisioned, counting())
}

// TestLimitsOfLimits: no number is too large to be counted.
func TestLimitsOfLimits(t *testing.T) {
	l := Limits{Memory: Share{Bytes: 1 << 30}, Disk: Share{Bytes: 1 << 30}}
	now := usage{memory: 1 << 20, allMemory: 1 << 40, disk: 1 << 20, allDisk: 1 << 40}
	for _, s := range []terms.Spec{{Memory: math.MaxInt64}, {Disk: math.MaxInt64}} {
		if err := l.admits(now, s); err == nil {
			t.Errorf("%+v is let in", s)
		}
	}
}

// TestDiskOfInstances: what a limit is of is the disk that instances are on, whether their folder is there yet or not.
func TestDiskOfInstances(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, newOrigin(), filepath.Join(dir, "not", "there", "yet"), 1)
	if err := w.admit(terms.Spec{}); err != nil {
		t.Error("a folder that is to be made:", err)
	}
	if err := unix.Mount("disk", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	w = newWorld(t, newOrigin(), dir, 2, func(c *Config) { c.Limits.Disk = Share{Part: 1} })
	if err := w.admit(terms.Spec{Disk: 2 << 20}); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("2 MiB on a disk of 1 MiB: %v", err)
	}
}

// TestReadyMeanwhile: what a workload has written stays that was started when the node was killed, and by the time it is back
// has ended, or does not answer: it may have been ready, and used.
func TestReadyMeanwhile(t *testing.T) {
	for _, want := range []state.State{state.Crashed, state.Provisioned} {
		readyMeanwhile(t, want)
	}
}

func readyMeanwhile(t *testing.T, want state.State) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	spec := terms.Spec{Command: []string{"sh", "-c", "echo data > written; echo up; exec sleep 1000"}, Ready: "log:never", ReadyTimeout: 2}
	if _, _, err := w.Do(t.Context(), "web", state.Provision, terms.Request{Spec: spec}); err != nil {
		t.Fatal(err)
	}
	for e, changed := w.get("web").now(); len(e.Left) == 0 || e.Left[0] != state.Await; e, changed = w.get("web").now() {
		<-changed
	}
	e, _ := w.get("web").now()
	for w.get("web").hasSaid(0, "up") != nil {
		<-time.After(10 * time.Millisecond)
	}
	w.stop()
	if want == state.Crashed {
		if err := unix.Kill(e.Process.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	w = w.again(o)
	w.until("web", want)
	w.must("web", state.Deprovision, state.Unprovisioned)
	if r := o.record(t, "web"); r.Head == nil {
		t.Errorf("%+v", r)
	}
}

// TestLogsEnd with the instance that somebody follows.
func TestLogsEnd(t *testing.T) {
	w := newWorld(t, newOrigin(), t.TempDir(), 1)
	v := w.must("web", state.Provision, state.Provisioned, counting())
	said, ended := bytes.Buffer{}, make(chan error, 1)
	go func() { ended <- w.Logs(context.Background(), "web", 0, true, &said) }()
	w.must("web", state.Deprovision, state.Unprovisioned)
	if err := <-ended; err != nil || !strings.Contains(said.String(), fmt.Sprint("listening on ", v.Port)) {
		t.Errorf("%q, %v", said.String(), err)
	}
}

// TestLostReplies: a record that was written, and whose writer heard that it was not, is nobody else's.
func TestLostReplies(t *testing.T) {
	for lost := range 6 {
		o := newOrigin()
		w := newWorld(t, o, t.TempDir(), 1)
		o.losing = lost + 1
		if _, err := w.do("web", state.Provision, counting()); err != nil && lost > 0 {
			t.Error(err)
		}
		v := w.must("web", state.Provision, state.Provisioned, counting())
		w.page(v, "add/one")
		w.must("web", state.Deprovision, state.Unprovisioned)
		if r := o.record(t, "web"); r.State != catalog.Released || r.Head == nil {
			t.Errorf("reply %d lost: %+v", lost, r)
		}
		if _, err := w.do("web", state.Provision); err != nil && lost != 3 {
			t.Error(err)
		}
		if got := w.page(w.must("web", state.Provision, state.Provisioned), ""); got != "one stopped " {
			t.Errorf("reply %d lost: it has %q", lost, got)
		}
		w.must("web", state.Obliterate, state.Unprovisioned)
		if _, err := o.Instance(t.Context(), "web"); !errors.Is(err, content.ErrNotFound) || len(w.folders()) > 0 {
			t.Errorf("reply %d lost: there is left %q, %v", lost, w.folders(), err)
		}
	}
}

// TestAsItWas: what has not changed is put away as it was, behind the same ones.
func TestAsItWas(t *testing.T) {
	o := newOrigin()
	w := newWorld(t, o, t.TempDir(), 1)
	run := terms.Request{Spec: terms.Spec{Command: []string{"sleep", "1000"}, Ready: "none"}}
	for range 3 {
		w.must("web", state.Provision, state.Provisioned, run)
		w.must("web", state.Deprovision, state.Unprovisioned)
	}
	if r := o.record(t, "web"); len(r.Lineage) > 0 {
		t.Errorf("%d ancestors of one that has never changed", len(r.Lineage))
	}
}

// TestMountedByWorkloads: what a workload has mounted in its folder, and left there, is not removed with that.
func TestMountedByWorkloads(t *testing.T) {
	w, host := newWorld(t, newOrigin(), t.TempDir(), 1), t.TempDir()
	v := w.must("web", state.Provision, state.Provisioned, still())
	at := filepath.Join(v.Dir, "mounted here")
	if err := errors.Join(os.WriteFile(filepath.Join(host, "file"), nil, 0o600), os.Mkdir(at, 0o700), unix.Mount(host, at, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(at, 0) })
	defer unmount()
	_, op, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{})
	if err != nil {
		t.Fatal(err)
	}
	for i := w.get("web"); !i.isGone(); {
		e, changed := i.now()
		if e.Tries > 0 {
			if !errors.Is(e.why, content.ErrConflict) || !strings.Contains(e.Detail, at) {
				t.Errorf("it says %q", e.Detail)
			}
			break
		}
		<-changed
	}
	if _, err := os.Stat(filepath.Join(host, "file")); err != nil {
		t.Error(err)
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if op, err = w.cfg.Operations.Wait(t.Context(), op.ID); err != nil || op.State != operations.Done {
		t.Errorf("%+v, %v", op, err)
	}
}
