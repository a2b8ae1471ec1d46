package process

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// begin starts a script of the shell.
func begin(t *testing.T, script string) (*Process, Config) {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Command: []string{"sh", "-c", script}, Dir: dir, Env: []string{"PATH=" + os.Getenv("PATH"), "WORD=hello"}, Log: filepath.Join(dir, "log")}
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(p.signal(unix.SIGKILL), p.Close()) })
	return p, cfg
}

// says waits until the log has a word.
func says(t *testing.T, cfg Config, word string) string {
	t.Helper()
	tick := time.Tick(10 * time.Millisecond)
	for {
		if b, err := os.ReadFile(cfg.Log); err == nil && bytes.Contains(b, []byte(word)) {
			return string(b)
		}
		select {
		case <-tick:
		case <-t.Context().Done():
			t.Fatalf("it never says %q", word)
		}
	}
}

func TestWhatIsStarted(t *testing.T) {
	p, cfg := begin(t, `echo $WORD from $(pwd); ulimit -n; echo over; exit 3`)
	if err := p.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("how it has ended: %v", err)
	}
	if said := says(t, cfg, "over"); !strings.HasPrefix(said, "hello from "+cfg.Dir) {
		t.Errorf("it said %q", said)
	}
	if _, err := Adopt(p.ID, ""); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("one that has ended: %v", err)
	}
	for _, command := range [][]string{nil, {"no-such-program"}, {"/no/such/program"}, {"./none"}, {"/"}} {
		cfg.Command = command
		if _, err := Start(cfg); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v", command, err)
		}
	}
}

// TestLimits: a process has its limits from its first instruction on.
func TestLimits(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		cfg := Config{Command: []string{"cat", "/proc/self/limits"}, Dir: dir, Env: []string{"PATH=" + os.Getenv("PATH")}, Log: filepath.Join(dir, "log"), Limits: map[string]uint64{"nofile": 77, "core": 0}}
		p, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Wait(t.Context()), p.Close()); err != nil {
			t.Error(err)
		}
		if said, err := os.ReadFile(cfg.Log); err != nil || !strings.Contains(string(said), "open files            77                   77") {
			t.Fatalf("%s, %v", said, err)
		}
	}
}

// TestWhatIsAdopted: another start of the node finds a process by who it is, and by no number alone; and ends it.
func TestWhatIsAdopted(t *testing.T) {
	p, cfg := begin(t, `trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	says(t, cfg, "ready")
	for _, other := range []ID{{p.PID, p.Began + 1, p.Boot}, {p.PID, p.Began, "another boot"}, {1, p.Began, p.Boot}} {
		if _, err := Adopt(other, ""); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("%+v: %v", other, err)
		}
	}
	again, err := Adopt(p.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := again.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it runs: %v", err)
	}
	if err := again.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	says(t, cfg, "told")
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("who has started it: %v", err)
	}
}

// TestWhatDoesNotStop is ended by force, with all that it has begun in its session.
func TestWhatDoesNotStop(t *testing.T) {
	p, cfg := begin(t, `trap '' TERM; (trap '' TERM; sleep 1000 & echo child $!; wait) & echo ready; while :; do sleep 0.05; done`)
	said := says(t, cfg, "child ")
	if err := p.Stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	child := strings.Fields(said[strings.Index(said, "child ")+len("child "):])[0]
	tick := time.Tick(10 * time.Millisecond)
	for exec.CommandContext(t.Context(), "kill", "-0", child).Run() == nil {
		if state, _ := os.ReadFile("/proc/" + child + "/stat"); bytes.Contains(state, []byte(") Z ")) {
			break
		}
		<-tick
	}
}

// TestItOutlivesWhoHasStartedIt, and what it says goes on to the log.
func TestItOutlivesWhoHasStartedIt(t *testing.T) {
	p, cfg := begin(t, `mkfifo fifo; echo ready; read x <fifo; echo after`)
	says(t, cfg, "ready")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	_ = exec.CommandContext(t.Context(), "sh", "-c", "echo > "+filepath.Join(cfg.Dir, "fifo")).Run()
	says(t, cfg, "after")
	_, _ = p.child.Wait()
}

// TestSweptByFolder: of processes with one variable those end that mean the same folder: one in a container may have another.
func TestSweptByFolder(t *testing.T) {
	over := t.TempDir()
	dir := filepath.Join(over, "instance")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	variable := "FOLDER=" + dir
	start := func(script string) (*Process, Config) {
		_, cfg := begin(t, "exit 0")
		cfg.Command, cfg.Env = []string{"unshare", "--mount", "sh", "-c", script + "; echo begun; exec sleep 1000"}, append(cfg.Env, variable)
		p, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = errors.Join(p.signal(unix.SIGKILL), p.Close()) })
		says(t, cfg, "begun")
		return p, cfg
	}
	ours, _ := start(":")
	other, _ := start("mount -t tmpfs none " + over + " && mkdir " + dir)
	if err := Sweep(variable, ""); err != nil {
		t.Fatal(err)
	}
	if !ours.HasEnded() || other.HasEnded() {
		t.Errorf("ours has ended: %t; another's: %t", ours.HasEnded(), other.HasEnded())
	}
}
