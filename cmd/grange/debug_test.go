//go:build linux

package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/debug"
)

// TestProfilesOnAPrivatePort: go's own tool takes them, this host's users alone get there where
// no host is said, no page of another site does, and the API has none of it.
func TestProfilesOnAPrivatePort(t *testing.T) {
	s := serveNode(t, "--debug", ":0", "--api", "127.0.0.1:0")
	defer s.signal(t, syscall.SIGTERM)
	s.await(t, "profiles are served")
	address := s.nbd // the one that was logged
	get := func(path, host string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "tool", "pprof", "-top", "http://"+address+"/debug/pprof/heap").CombinedOutput(); err != nil || !strings.Contains(string(out), "inuse_space") {
		t.Errorf("%v: %s", err, out)
	}
	if code, text := get("/debug/pprof/goroutine?debug=2", ""); code != http.StatusOK || !strings.Contains(text, "goroutine ") {
		t.Errorf("%d %.200s", code, text)
	}
	var vars map[string]any
	if code, text := get("/debug/vars", "localhost:80"); code != http.StatusOK || json.Unmarshal([]byte(text), &vars) != nil || vars["memstats"] == nil || vars["cmdline"] == nil {
		t.Errorf("%d %.200s", code, text)
	}
	for host, want := range map[string]int{"evil.example": http.StatusForbidden, "evil.example:80": http.StatusForbidden, "[::1]:80": http.StatusOK} {
		if code, _ := get("/debug/vars", host); code != want {
			t.Errorf("as %s: %d", host, code)
		}
	}
	if strings.Contains(s.metrics(t), "pprof") {
		t.Error("the API shows profiles")
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	for _, a := range addrs {
		if n := a.(*net.IPNet); !n.IP.IsLoopback() && n.IP.To4() != nil {
			if c, err := net.Dial("tcp", net.JoinHostPort(n.IP.String(), port)); err == nil {
				c.Close()
				t.Errorf("it is served at %s", n.IP)
			}
		}
	}
	for text, want := range map[string]string{":6060": "127.0.0.1:6060", "10.0.0.1:6060": "10.0.0.1:6060", "6060": "", "host": "", "": ""} {
		if got, err := debug.Address(text); got != want || (err == nil) != (want != "") || err == nil && debug.Open(got) != strings.HasPrefix(text, "10") {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
}
