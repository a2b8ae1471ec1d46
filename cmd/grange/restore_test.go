//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// refused starts a node that ends by itself, and returns what it says last.
func (s *served) refused(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for s.says.Scan() {
		fmt.Fprintln(&all, s.says.Text())
		if strings.Contains(s.says.Text(), "INF serving") {
			s.signal(t, syscall.SIGKILL)
		}
	}
	_, last, _ := strings.Cut(all.String(), "grange: ")
	_ = s.cmd.Wait() // the code is what is looked at
	if code := s.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d: %s", code, last)
	}
	return last
}

// files is each file of a folder with its bytes, but for the lock.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "lock" {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRestoredFolders starts nodes in folders that lack a part, as a backup may bring
// them back: none starts, each says what is missing, and no byte changes.
func TestRestoredFolders(t *testing.T) {
	s := serveNode(t)
	data := filepath.Join(s.dir, "data")
	if code, _, said := command(t, "volume", "create", "disk", "--size", "1MiB", "--data", data); code != 0 {
		t.Fatal(said)
	}
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("a clean stop: %v", end)
	}
	for what, c := range map[string]struct {
		harm func(dir string) error
		says []string
	}{
		"membership": {func(dir string) error { return os.Remove(filepath.Join(dir, "data/membership")) }, []string{"lacks membership", "mesh.key"}},
		"identity":   {func(dir string) error { return os.Remove(filepath.Join(dir, "data/identity.key")) }, []string{"lacks identity.key"}},
		"an emptied origin": {func(dir string) error {
			return errors.Join(os.RemoveAll(filepath.Join(dir, "origin")), os.Mkdir(filepath.Join(dir, "origin"), 0o700),
				os.RemoveAll(filepath.Join(dir, "data/volumes")))
		}, []string{"origin", "it was this mesh's", "backup"}},
		"all of the membership's text": {func(dir string) error { return os.Truncate(filepath.Join(dir, "data/membership"), 0) }, []string{"membership", "corrupt", "backup"}},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.CopyFS(filepath.Join(dir, "data"), os.DirFS(data)), os.CopyFS(filepath.Join(dir, "origin"), os.DirFS(filepath.Join(s.dir, "origin")))); err != nil {
			t.Fatal(err)
		}
		// The origin that the folder remembers has moved with it.
		restored := startNode(t, os.Args[0], dir)
		restored.await(t, "INF serving")
		restored.signal(t, syscall.SIGTERM)
		if end := restored.ends(t); end.ExitStatus() != 0 {
			t.Fatalf("a folder that was restored whole: %v", end)
		}
		if err := c.harm(dir); err != nil {
			t.Fatal(err)
		}
		before := files(t, dir)
		said := startNode(t, os.Args[0], dir).refused(t)
		for _, word := range c.says {
			if !strings.Contains(said, word) {
				t.Errorf("%s: %q does not say %q", what, said, word)
			}
		}
		if after := files(t, dir); !maps.Equal(before, after) {
			t.Errorf("%s: the folder had %q and has %q, or other bytes", what, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
		}
	}
}

// TestFirstStartLooksFirst: what can't work is found before a mesh is founded, an origin
// remembered or a token spent: the same folder, and the same token, do for the next try.
func TestFirstStartLooksFirst(t *testing.T) {
	first := serveNode(t)
	app := ask.Node{Data: filepath.Join(first.dir, "data")}
	var made api.Token
	if err := app.Ask(t.Context(), "POST", "/api/tokens", api.TokenRequest{Role: "node"}, &made); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(first.dir, "token")
	if err := os.WriteFile(token, []byte(made.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	for _, join := range []bool{true, false} {
		dir := t.TempDir()
		args := []string{"--origin", "file://" + filepath.Join(first.dir, "origin"), "--join", "@" + token}
		if !join {
			args = nil
		}
		for what, c := range map[string]struct{ args, says []string }{
			"a port in use":       {[]string{"--listen", "/ip4/127.0.0.1/tcp/" + port}, []string{"--listen", port, "in use"}},
			"a farm port in use":  {[]string{"--farm-bind", taken.Addr().String()}, []string{"--farm-bind", port, "in use"}},
			"an API port in use":  {[]string{"--api", taken.Addr().String()}, []string{"--api", port, "in use"}},
			"another's address":   {[]string{"--listen", "/ip4/203.0.113.9/tcp/4001"}, []string{"--listen", "203.0.113.9"}},
			"no credentials":      {[]string{"--origin", "s3://images/farm?endpoint=http://" + taken.Addr().String() + "&region=r"}, []string{"--origin", "credentials"}},
			"no such store":       {[]string{"--origin", "s3://images/farm?endpoint=http://127.0.0.1:1&region=r"}, []string{"--origin"}},
			"a bootstrap address": {[]string{"--bootstrap", "10.0.0.5"}, []string{"--bootstrap", "10.0.0.5"}},
			"a name":              {[]string{"--name", "a b"}, []string{"--name"}},
		} {
			more := slices.Clone(args)
			if slices.Contains(c.args, "--origin") && join {
				more = args[2:]
			}
			s := first.stranger(t, dir, slices.Concat(more, c.args))
			said := s.refused(t)
			for _, word := range c.says {
				if !strings.Contains(said, word) {
					t.Errorf("%s: %q does not say %q", what, said, word)
				}
			}
			for _, name := range []string{"identity.key", "mesh.key", "membership"} {
				if _, err := os.Stat(filepath.Join(dir, "data", name)); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s: there is %s: %v", what, name, err)
				}
			}
		}
		s := first.stranger(t, dir, args)
		s.await(t, "INF serving")
		s.signal(t, syscall.SIGTERM)
		if end := s.ends(t); end.ExitStatus() != 0 {
			t.Errorf("it ended with %v", end)
		}
	}
}

// stranger starts another node, in a folder of its own.
func (s *served) stranger(t *testing.T, dir string, args []string) *served {
	t.Helper()
	more := args
	if !slices.Contains(args, "--listen") {
		more = append(slices.Clone(args), "--listen", "/ip4/127.0.0.1/tcp/0")
	}
	return startCommand(t, os.Args[0], dir, append([]string{"node", "--data", filepath.Join(dir, "data")}, more...))
}

// TestDisksAreServedWhateverTheNetworkSays starts a node whose volume was attached with
// settings of which none is right.
func TestDisksAreServedWhateverTheNetworkSays(t *testing.T) {
	s := serveNode(t)
	data := filepath.Join(s.dir, "data")
	if code, _, said := command(t, "volume", "create", "disk", "--size", "1MiB", "--data", data); code != 0 {
		t.Fatal(said)
	}
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("a clean stop: %v", end)
	}
	for i, bad := range [][]string{
		{"--listen", "/ip4/203.0.113.9/tcp/4001"}, {"--listen", "10.0.0.5:4001"}, {"--bootstrap", "nobody"}, {"--farm-bind", "nowhere"},
		{"--farm-bind", "203.0.113.9:7946"}, {"--api", "203.0.113.9:8080"}, {"--name", "a b"}, {"--origin", "ftp://nowhere"}, {"--farm", "a b"},
	} {
		s := s.stranger(t, s.dir, bad)
		s.await(t, "INF serving")
		var v api.Volume
		if err := (&ask.Node{Data: data}).Ask(t.Context(), "GET", "/api/volumes/disk", nil, &v); err != nil {
			t.Error(err)
		}
		until(t, fmt.Sprintf("%q: disk is served", bad), func() bool {
			err := (&ask.Node{Data: data}).Ask(t.Context(), "GET", "/api/volumes/disk", nil, &v)
			return err == nil && (v.State == "attached" || v.State == "uncommitted")
		})
		if i%2 == 0 { // both ways to end it
			s.signal(t, syscall.SIGKILL)
			s.ends(t)
			continue
		}
		s.signal(t, syscall.SIGTERM)
		if end := s.ends(t); end.ExitStatus() != 0 {
			t.Errorf("%q: it ended with %v", bad, end)
		}
	}
}

// TestFolderOfOthers: a --data by mistake, as / or a home, is no folder to clear.
func TestFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "data", "tmp", "thesis")
	if err := errors.Join(os.MkdirAll(filepath.Dir(theirs), 0o700), os.WriteFile(theirs, []byte("words"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if said := startNode(t, os.Args[0], dir).refused(t); !strings.Contains(said, "empty --data") {
		t.Errorf("it says %q", said)
	}
	if b, err := os.ReadFile(theirs); err != nil || string(b) != "words" {
		t.Errorf("%q, %v", b, err)
	}
}
