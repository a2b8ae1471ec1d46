//go:build unix

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
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
	nbd  string // its TCP address of NBD, once it serves
}

// serveNode starts one, with flags beside those that it needs.
func serveNode(t *testing.T, flags ...string) *served {
	t.Helper()
	s := &served{dir: t.TempDir()}
	origin := filepath.Join(s.dir, "origin")
	if err := os.Mkdir(origin, 0o700); err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.CommandContext(t.Context(), os.Args[0], "node", "--data", filepath.Join(s.dir, "data"), "--origin", "file://"+origin, "--listen", "/ip4/127.0.0.1/tcp/0")
	s.cmd.Args = append(s.cmd.Args, flags...)
	s.cmd.Env = append(os.Environ(), asCommand+"=1")
	s.begin(t)
	return s
}

// begin starts the process, and returns when it serves.
func (s *served) begin(t *testing.T) {
	t.Helper()
	out, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.says = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.await(t, "serving")
}

// tcpAddress is how the log names where NBD is served over TCP.
var tcpAddress = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// await reads the log until it says a word.
func (s *served) await(t *testing.T, word string) {
	t.Helper()
	for s.says.Scan() {
		if text := s.says.Text(); strings.Contains(text, word) {
			if found := tcpAddress.FindString(text); found != "" {
				s.nbd = found
			}
			return
		}
		t.Log(s.says.Text())
	}
	t.Fatalf("the node has ended and did not say %q: %v", word, s.says.Err())
}

func (s *served) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// hangs begins an import that no stop can end: it waits for who writes a pipe.
func (s *served) hangs(t *testing.T) {
	t.Helper()
	pipe := filepath.Join(s.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	app := cli{Data: filepath.Join(s.dir, "data")}
	if err := app.ask(t.Context(), "PUT", "/api/images/pipe", api.ImportRequest{Source: pipe}, nil); err != nil {
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
