//go:build linux

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// copyNode copies a node's data folder, which may be in use, but for its sockets.
func copyNode(t *testing.T, from string) (to string) {
	t.Helper()
	to = t.TempDir()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		return errors.Join(err, os.WriteFile(filepath.Join(to, rel), b, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// addrs are where a node is served.
func (s *served) addrs(t *testing.T) []string {
	t.Helper()
	var p api.Peers
	if err := (&ask.Node{Data: filepath.Join(s.dir, "data")}).Ask(t.Context(), "GET", "/api/peers", nil, &p); err != nil {
		t.Fatal(err)
	}
	return p.Self.Addrs
}

// TestCopyOfANodeRefusesToServe: the folder of a node that runs, alone, with a volume
// that somebody uses, is copied and started elsewhere.
func TestCopyOfANodeRefusesToServe(t *testing.T) {
	first := serveNode(t)
	if code, _, said := command(t, "volume", "create", "disk", "--size", "1MiB", "--data", filepath.Join(first.dir, "data")); code != 0 {
		t.Fatal(said)
	}
	here := first.addrs(t)
	said := startNode(t, os.Args[0], copyNode(t, first.dir)).refused(t)
	if !strings.Contains(said, here[0]) || strings.Count(said, "/ip4/127.0.0.1/tcp/") < 2 || !strings.Contains(said, "identity") {
		t.Errorf("the copy says %q, the first is at %q", said, here)
	}
	first.await(t, "another node has this one's identity")
	if line := first.says.Text(); !strings.Contains(line, here[0]) || strings.Count(line, "/ip4/127.0.0.1/tcp/") < 2 {
		t.Errorf("the first says %q", line)
	}
	first.signal(t, syscall.SIGTERM)
	if end := first.ends(t); end.ExitStatus() != 0 {
		t.Errorf("the first ended with %v", end)
	}
	moved := startNode(t, os.Args[0], first.dir) // at another port, which is no copy
	moved.await(t, "serving")
}

// TestCopiesThatMeetOneMember: the first has moved since it was copied, so that the copy
// does not find it; by a member of both they do, and the later ends.
func TestCopiesThatMeetOneMember(t *testing.T) {
	founder := serveNode(t)
	var made api.Token
	if err := (&ask.Node{Data: filepath.Join(founder.dir, "data")}).Ask(t.Context(), "POST", "/api/tokens", api.TokenRequest{Role: "node"}, &made); err != nil {
		t.Fatal(err)
	}
	start := func(dir string, more ...string) *served {
		return startCommand(t, os.Args[0], dir, append([]string{"node", "--data", filepath.Join(dir, "data"), "--listen", "/ip4/127.0.0.1/tcp/0",
			"--origin", "file://" + filepath.Join(founder.dir, "origin")}, more...))
	}
	first := start(t.TempDir(), "--join", made.Token)
	first.await(t, "serving")
	first.signal(t, syscall.SIGTERM)
	first.ends(t)
	copied := copyNode(t, first.dir)
	first = start(first.dir)
	first.await(t, "serving")
	var st api.Status
	until(t, "the first has met a member", func() bool {
		var p api.Peers
		err := (&ask.Node{Data: filepath.Join(first.dir, "data")}).Ask(t.Context(), "GET", "/api/peers", nil, &p)
		return err == nil && len(p.Peers) == 1 && p.Peers[0].Farm != ""
	})
	here := first.addrs(t)
	second := start(copied)
	said := second.ended(t)
	if second.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said, here[0]) {
		t.Errorf("code %d: the copy says %q, the first is at %q", second.cmd.ProcessState.ExitCode(), said, here)
	}
	first.await(t, "another node has this one's identity")
	if err := (&ask.Node{Data: filepath.Join(first.dir, "data")}).Ask(t.Context(), "GET", "/api/status", nil, &st); err != nil {
		t.Error(err)
	}
}

// ended returns what a node has said last when it has ended by itself.
func (s *served) ended(t *testing.T) (last string) {
	t.Helper()
	for s.says.Scan() {
		last = s.says.Text()
		t.Log(last)
	}
	_ = s.cmd.Wait() // the code is what is looked at
	return last
}
