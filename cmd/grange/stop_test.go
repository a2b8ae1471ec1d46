//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// ownAddress returns the i-th that only this process binds to: on 127.0.0.1 any connection
// of any process may take a port between its choice and its use.
func ownAddress(i int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:%d", 1+pid>>16&63, pid>>8&255, pid&255, 7946+i)
}

// farmOf starts n nodes of one farm, the first of which founds the mesh, and waits until
// each sees all.
func farmOf(t *testing.T, n int) []*served {
	t.Helper()
	first := ownAddress(0)
	all := []*served{startNode(t, os.Args[0], t.TempDir(), "--farm-bind", first)}
	all[0].await(t, "serving")
	app := ask.Node{Data: filepath.Join(all[0].dir, "data")}
	for i := 1; i < n; i++ {
		var made api.Token
		if err := app.Ask(t.Context(), "POST", "/api/tokens", api.TokenRequest{Role: "node"}, &made); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		all = append(all, startCommand(t, os.Args[0], dir, []string{"node", "--data", filepath.Join(dir, "data"), "--origin", "file://" + filepath.Join(all[0].dir, "origin"),
			"--listen", "/ip4/127.0.0.1/tcp/0", "--farm-bind", ownAddress(i), "--farm-join", first, "--join", made.Token}))
	}
	for _, s := range all[1:] {
		s.await(t, "serving")
	}
	for _, s := range all {
		until(t, fmt.Sprintf("%d neighbours", n-1), func() bool {
			var st api.Status
			err := (&ask.Node{Data: filepath.Join(s.dir, "data")}).Ask(t.Context(), "GET", "/api/status", nil, &st)
			return err == nil && len(st.Farm) == n-1
		})
	}
	return all
}

// TestAllStopAtOnce: a clean stop is one though nobody is left to say good-bye to.
func TestAllStopAtOnce(t *testing.T) {
	all := farmOf(t, 4)
	for _, s := range all {
		s.signal(t, syscall.SIGTERM)
	}
	for i, s := range all {
		if end := s.ends(t); end.ExitStatus() != 0 {
			t.Errorf("node %d ended with %v", i, end)
		}
	}
}
