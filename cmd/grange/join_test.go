//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// TestTokenStaysOutOfPs joins a real process with a token on its command line, which
// others on the host can read: it is gone from there once the node serves, and through
// a handover; the process ID stays.
func TestTokenStaysOutOfPs(t *testing.T) {
	first := serveNode(t)
	defer first.signal(t, syscall.SIGTERM)
	app := ask.Node{Data: filepath.Join(first.dir, "data")}
	for _, form := range []string{"apart", "together"} {
		var made api.Token
		if err := app.Ask(t.Context(), "POST", "/api/tokens", api.TokenRequest{Role: "node"}, &made); err != nil {
			t.Fatal(err)
		}
		args := []string{"node", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "/ip4/127.0.0.1/tcp/0", "--origin", "file://" + filepath.Join(first.dir, "origin"), "--join"}
		if form == "apart" {
			args = append(args, made.Token)
		} else {
			args[len(args)-1] += "=" + made.Token
		}
		s := startCommand(t, os.Args[0], t.TempDir(), args)
		s.await(t, "serving")
		s.hides(t, made.Token)
		s.signal(t, syscall.SIGUSR2)
		s.await(t, "serving")
		s.hides(t, made.Token)
		s.signal(t, syscall.SIGTERM)
		if end := s.ends(t); end.ExitStatus() != 0 {
			t.Errorf("%s: it ended with %v", form, end)
		}
	}
}

// hides fails the test if a process shows a token to others.
func (s *served) hides(t *testing.T, token string) {
	t.Helper()
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), token) || !strings.Contains(string(b), map[string]string{"cmdline": "node\x00", "environ": asCommand}[file]) {
			t.Errorf("%s: %q", file, b)
		}
	}
}

// TestWhereATokenComesFrom: a file, the standard input, or the flag; and a member needs
// it no more.
func TestWhereATokenComesFrom(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(" grange1x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	member := t.TempDir()
	if err := os.WriteFile(filepath.Join(member, "membership"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		join, in, dir, want string
		fails               bool
	}{
		{"grange1x", "", dir, "grange1x", false}, {"@" + file, "", dir, "grange1x", false}, {"-", "grange1x\n", dir, "grange1x", false},
		{"", "", dir, "", true}, {"-", "", dir, "", true}, {"@" + file + "x", "", dir, "", true},
		{"-", "", member, "", false}, {"@" + file + "x", "", member, "", false}, {"", "", member, "", true}, {"grange1x", "", member, "grange1x", false},
	} {
		c := memberFlags{Join: &x.join}
		got, err := c.token(x.dir, ask.Stdio{In: strings.NewReader(x.in)})
		if got != x.want || errors.Is(err, ask.ErrUsage) != x.fails {
			t.Errorf("%q: %q, %v", x.join, got, err)
		}
	}
	args, found := withoutToken([]string{"grange", "node", "--join=grange1x", "--data", "grange1xy"}, "grange1x")
	if want := []string{"grange", "node", "--join=-", "--data", "grange1xy"}; !found || !slices.Equal(args, want) {
		t.Errorf("%q", args)
	}
}

// TestMeshKeyFile is written once, for its owner, and sealed with a passphrase.
func TestMeshKeyFile(t *testing.T) {
	s := serveNode(t)
	data, dir := filepath.Join(s.dir, "data"), t.TempDir()
	plain, sealed, phrase := filepath.Join(dir, "plain"), filepath.Join(dir, "sealed"), filepath.Join(dir, "phrase")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		args []string
		code int
	}{
		{[]string{"mesh", "export-key", plain}, 0}, {[]string{"mesh", "export-key", plain}, 1},
		{[]string{"mesh", "export-key", sealed, "--passphrase-file", phrase}, 0},
		{[]string{"mesh", "import-key", plain}, 0}, {[]string{"mesh", "import-key", sealed, "--passphrase-file", phrase}, 0},
		{[]string{"mesh", "import-key", sealed, "--passphrase-file", plain}, 1}, {[]string{"mesh", "import-key", phrase}, 1},
		{[]string{"mesh", "revoke", "nobody"}, 1}, {[]string{"mesh", "members"}, 0}, {[]string{"mesh", "rotate", "--json"}, 0},
	} {
		code, said, complaint := command(t, append(x.args, "--data", data)...)
		if sealing := len(x.args) > 3 && x.args[1] == "export-key"; code != x.code || sealing && !strings.Contains(said, "and the passphrase") {
			t.Errorf("%q: code %d, %s %s", x.args, code, said, complaint)
		}
	}
	key, err := os.ReadFile(plain)
	if err != nil || !strings.HasPrefix(string(key), "grange-private-key-1 ") {
		t.Errorf("%d bytes, %v", len(key), err)
	}
	secret, err := os.ReadFile(sealed)
	if err != nil || strings.Contains(string(secret), "grange-private-key") {
		t.Errorf("%d bytes, %v", len(secret), err)
	}
	for _, path := range []string{plain, sealed} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("%v", end)
	}
}
