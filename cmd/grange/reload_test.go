//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// TestHangupReadsTheConfigAnew, and the node goes on.
func TestHangupReadsTheConfigAnew(t *testing.T) {
	config := filepath.Join(t.TempDir(), "grange.yaml")
	quota := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte("quota: "+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	quota("1G")
	s := serveNode(t, "--config", config)
	has := func(want int64) {
		t.Helper()
		var k api.Cache
		_, out, complaint := command(t, "cache", "show", "--json", "--data", filepath.Join(s.dir, "data"))
		if err := json.Unmarshal([]byte(out), &k); err != nil || k.Quota != want {
			t.Errorf("quota %d, want %d: %v %s", k.Quota, want, err, complaint)
		}
	}
	has(1 << 30)
	quota("2G")
	s.signal(t, syscall.SIGHUP)
	s.await(t, "serving")
	has(2 << 30)
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("it ended with %v", end)
	}
}

// TestHangupBeforeItServes is kept until the node does, here from the moment in which it
// reads its config file on.
func TestHangupBeforeItServes(t *testing.T) {
	config := filepath.Join(t.TempDir(), "grange.yaml")
	if err := syscall.Mkfifo(config, 0o600); err != nil {
		t.Fatal(err)
	}
	// feed gives the file to the process that opens it next, and first does more.
	feed := func(meanwhile func()) {
		t.Helper()
		f, err := os.OpenFile(config, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		meanwhile()
		_, err = f.WriteString("quota: 1GiB\n")
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s := startNode(t, os.Args[0], t.TempDir(), "--config", config)
	feed(func() { s.signal(t, syscall.SIGHUP) })
	s.await(t, "serving")
	feed(func() {}) // whether it would start so
	s.await(t, "handing over")
	feed(func() {})
	s.await(t, "serving")
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("it ended with %v", end)
	}
}

// TestStandardInputForANodeOfAnotherUser: root hands the node what it may read.
func TestStandardInputForANodeOfAnotherUser(t *testing.T) {
	const nobody = 65534
	dir, err := os.MkdirTemp("", "grange")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, data := filepath.Join(dir, "grange"), filepath.Join(dir, "home", "data")
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(dir, 0o755), os.WriteFile(program, self, 0o755), os.MkdirAll(filepath.Join(dir, "home", "origin"), 0o700), os.Chown(filepath.Join(dir, "home"), nobody, nobody), os.Chown(filepath.Join(dir, "home", "origin"), nobody, nobody)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &served{dir: dir}
	s.cmd = exec.CommandContext(t.Context(), program, "node", "--data", data, "--origin", "file://"+filepath.Join(dir, "home", "origin"), "--listen", "/ip4/127.0.0.1/tcp/0")
	s.cmd.Dir = "/"
	s.cmd.Env = append(os.Environ(), asCommand+"=1", "HOME="+filepath.Join(dir, "home"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	s.begin(t)
	s.await(t, "serving")
	var out, complaint bytes.Buffer
	in := io.MultiReader(strings.NewReader(strings.Repeat("grange", 1<<20)), bytes.NewReader(make([]byte, 2<<20)))
	if code := run(t.Context(), []string{"image", "import", "piped", "-", "--format", "raw", "--data", data}, ask.Stdio{In: in, Out: &out, Err: &complaint}, nil); code != 0 {
		t.Errorf("code %d: %s%s", code, out.String(), complaint.String())
	}
	s.signal(t, syscall.SIGTERM)
	s.ends(t)
}
