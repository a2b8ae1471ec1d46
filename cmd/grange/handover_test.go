//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/supervise"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/simulations/soak"
)

// asCommand in the environment makes this test's program the command itself.
const asCommand = "GRANGE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// served is a process of the command that serves a node in dir.
type served struct {
	dir  string
	cmd  *exec.Cmd
	says *bufio.Scanner
	out  *os.File // what says reads
	nbd  string   // its TCP address of NBD, once it serves
}

// serveNode starts one, with flags beside those that it needs.
func serveNode(t *testing.T, more ...string) *served {
	t.Helper()
	s := startNode(t, os.Args[0], t.TempDir(), more...)
	s.await(t, "serving")
	return s
}

// startNode starts a program as the node in a folder, with an origin beside its data.
func startNode(t *testing.T, program, dir string, more ...string) *served {
	t.Helper()
	origin := filepath.Join(dir, "origin")
	if err := os.MkdirAll(origin, 0o700); err != nil {
		t.Fatal(err)
	}
	return startCommand(t, program, dir, append([]string{"node", "--data", filepath.Join(dir, "data"), "--origin", "file://" + origin, "--listen", "/ip4/127.0.0.1/tcp/0"}, more...))
}

func startCommand(t *testing.T, program, dir string, args []string) *served {
	t.Helper()
	s := &served{dir: dir}
	s.cmd = exec.CommandContext(t.Context(), program, args...)
	s.cmd.Env = append(os.Environ(), asCommand+"=1")
	s.begin(t)
	return s
}

// begin starts the process.
func (s *served) begin(t *testing.T) {
	t.Helper()
	out, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.says, s.out = bufio.NewScanner(out), out.(*os.File)
	s.patience(t)
	cmd := s.cmd
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it ends with the test's context, and writes into folders of the test until then
}

// patience lets what the process says be waited for another minute.
func (s *served) patience(t *testing.T) {
	t.Helper()
	if err := s.out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// await reads the log until it says a word.
func (s *served) await(t *testing.T, word string) {
	t.Helper()
	s.patience(t)
	tcpAddress := regexp.MustCompile(`127\.0\.0\.1:[0-9]+`) // where NBD is served over TCP
	for s.says.Scan() {
		if text := s.says.Text(); strings.Contains(text, word) {
			if found := tcpAddress.FindString(text); found != "" {
				s.nbd = found
			}
			return
		}
		t.Log(s.says.Text())
	}
	t.Fatalf("the node has ended, or a minute has, and it did not say %q: %v", word, s.says.Err())
}

// until waits for what comes by itself.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within half a minute", what)
		}
	}
}

func (s *served) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// hangs begins an import that no stop can end: it waits for a file system that does not
// answer.
func (s *served) hangs(t *testing.T) {
	t.Helper()
	folder := filepath.Join(s.dir, "tree", "silent")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		err = syscall.Mount("silent", folder, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(fuse.Close(), syscall.Unmount(folder, syscall.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	app := ask.Node{Data: filepath.Join(s.dir, "data")}
	if err := app.Ask(t.Context(), "PUT", "/api/images/silent", api.ImportRequest{Options: convert.Options{Path: filepath.Dir(folder)}}, nil); err != nil {
		t.Fatal(err)
	}
}

// ends returns the state of the process once it has ended.
func (s *served) ends(t *testing.T) syscall.WaitStatus {
	t.Helper()
	for s.says.Scan() {
		t.Log(s.says.Text())
	}
	_ = s.cmd.Wait() // the caller knows what to expect
	return s.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// TestHandoverOnlyToWhatStarts: neither to a configuration that starts no node, nor to a
// program that does not, though it can say its version; the node goes on, and hands over
// when both are right again.
func TestHandoverOnlyToWhatStarts(t *testing.T) {
	dir := t.TempDir()
	program, config := filepath.Join(dir, "grange"), filepath.Join(dir, "grange.yaml")
	whole, err := os.ReadFile(os.Args[0])
	write := func(path, text string) {
		t.Helper()
		tmp := path + ".new"
		if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o700), os.Rename(tmp, path)); err != nil {
			t.Fatal(err)
		}
	}
	if write(program, string(whole)); err != nil {
		t.Fatal(err)
	}
	write(config, "quota: 1GiB\n")
	s := startNode(t, program, dir, "--config", config)
	s.await(t, "serving")
	for what, text := range map[string]string{
		"an unknown key": "quotas: 1GiB\n", "a bad value": "quota: lots\n", "no YAML": "{{{", "no room": "quota: 1MiB\n",
		"no address": "bootstrap: [10.0.0.5]\n", "no member's name": "name: a b\n", "no farm's address": "farm-bind: nowhere\n",
	} {
		write(config, text)
		s.signal(t, syscall.SIGUSR2)
		s.await(t, "no handover")
		if code, _, said := command(t, "status", "--data", filepath.Join(dir, "data")); code != 0 {
			t.Errorf("%s: %s", what, said)
		}
	}
	write(config, "quota: 2GiB\n")
	write(program, "#!/bin/sh\n[ \"$1\" = --version ] && echo grange 2\n")
	s.signal(t, syscall.SIGUSR2)
	s.await(t, "no handover")
	write(program, string(whole))
	s.signal(t, syscall.SIGUSR2)
	s.await(t, "handing over")
	s.await(t, "serving")
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("stopped after the handover: %v", end)
	}
}

// TestHandoverInAnImport: a part that does not stop in time is left behind.
func TestHandoverInAnImport(t *testing.T) {
	s := serveNode(t)
	s.hangs(t)
	s.signal(t, syscall.SIGUSR2)
	s.await(t, "handing over all the same")
	s.await(t, "serving")
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("stopped after the handover: %v", end)
	}
}

// TestHandoversAtOnce: who asks again while the node hands over, or stops, ends nothing.
func TestHandoversAtOnce(t *testing.T) {
	s := serveNode(t)
	s.signal(t, syscall.SIGUSR2)
	s.await(t, "handing over")
	for range 50 {
		s.signal(t, syscall.SIGUSR2)
		s.signal(t, syscall.SIGHUP)
	}
	s.await(t, "serving")
	s.signal(t, syscall.SIGTERM)
	for range 50 {
		_ = s.cmd.Process.Signal(syscall.SIGHUP) // it may have ended
	}
	if end := s.ends(t); !end.Exited() || end.ExitStatus() != 0 {
		t.Errorf("stopped while it was asked for handovers: %v, signal %v", end, end.Signal())
	}
}

// TestStopOutrunsHandover: who asks for an end gets one.
func TestStopOutrunsHandover(t *testing.T) {
	s := serveNode(t)
	s.hangs(t)
	s.signal(t, syscall.SIGUSR2)
	s.await(t, "handing over")
	s.signal(t, syscall.SIGTERM)
	s.await(t, "no handover")
	if end := s.ends(t); !end.Exited() {
		t.Errorf("it ended by %v", end)
	}
}

// hearing is called with each line that is logged.
type hearing func(text string)

func (h hearing) Write(line []byte) (int, error) {
	h(string(line))
	return len(line), nil
}

// TestStopBetweenWordAndDeed: a stop that comes when a handover has been said and not begun
// is one, and that nobody takes over is said.
func TestStopBetweenWordAndDeed(t *testing.T) {
	dir := t.TempDir()
	defer func(args []string) { os.Args = args }(os.Args)
	os.Args = []string{os.Args[0], "node", "--data", dir, "--origin", "file://" + dir, "--listen", "/ip4/127.0.0.1/tcp/0"}
	t.Setenv(asCommand, "1")
	before, stop := context.WithCancel(t.Context())
	defer stop()
	var said []string
	log := slog.New(slog.NewTextHandler(hearing(func(line string) {
		said = append(said, line)
		stop()
	}), nil))
	upgrade := make(chan os.Signal, 1)
	upgrade <- syscall.SIGUSR2
	watch, err := supervise.New(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, ended := awaitHandover(before, func() bool { return false }, upgrade, watch, log)
	<-ctx.Done()
	cause := errors.New("it stopped")
	if err := ended(cause); err != cause {
		t.Errorf("it ends with %v", err)
	}
	if len(said) != 2 || !strings.Contains(said[0], "handing over") || !strings.Contains(said[1], "no handover") {
		t.Errorf("it said %q", said)
	}
}

// TestStopInTheLastMoment asks for an end when the node has stopped to become its next
// program: it ends, as one that was asked in time or as the next one, which is not ready.
func TestStopInTheLastMoment(t *testing.T) {
	for range soak.Rounds(100) {
		s := serveNode(t)
		s.signal(t, syscall.SIGUSR2)
		s.await(t, "INF stopped")
		s.signal(t, syscall.SIGTERM)
		if end := s.ends(t); !end.Exited() && end.Signal() != syscall.SIGTERM {
			t.Errorf("it ended by %v", end)
		}
	}
}

// TestSecondSignalEndsAtOnce: a stop that hangs is given up by another signal.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	s := serveNode(t)
	s.hangs(t)
	ended := make(chan syscall.WaitStatus)
	go func() { ended <- s.ends(t) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case end := <-ended:
			if !end.Signaled() {
				t.Errorf("it ended with %d", end.ExitStatus())
			}
			return
		case <-tick.C:
			_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
}
