//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// noise writes a file that does not compress.
func noise(t *testing.T, seed byte) string {
	t.Helper()
	path, raw := filepath.Join(t.TempDir(), "disk"), make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(raw)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// well runs a command line that has to succeed, and returns what it prints.
func (s *served) well(t *testing.T, line string) string {
	t.Helper()
	code, out, complaint := command(t, append(strings.Fields(line), "--data", filepath.Join(s.dir, "data"))...)
	if code != 0 {
		t.Fatalf("%s: code %d, %s%s", line, code, out, complaint)
	}
	return out
}

// TestTheOriginIsLookedAfter by commands at a real node: what is dead is marked, what is hurt is found, named and mended,
// and whoever needs what is said.
func TestTheOriginIsLookedAfter(t *testing.T) {
	s := serveNode(t)
	defer s.signal(t, syscall.SIGTERM)
	data := filepath.Join(s.dir, "data")
	if out := s.well(t, "origin gc --dry-run"); !strings.Contains(out, "nothing was written") {
		t.Errorf("of an empty origin: %s", out)
	}
	disk := noise(t, 1)
	s.well(t, "image import debian "+disk)
	s.well(t, "image import other "+noise(t, 2))
	s.well(t, "image rm other")
	var report api.Garbage
	if err := json.Unmarshal([]byte(s.well(t, "origin gc --json")), &report); err != nil || report.Epoch != 1 || report.Marked.Objects != 1 || report.Live.Objects != 1 || report.Deleted.Objects != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if out := s.well(t, "origin gc"); !strings.Contains(out, "waiting: 1 object") {
		t.Errorf("%s", out)
	}
	var up api.Upkeep
	if err := (&ask.Node{Data: data}).Ask(t.Context(), "GET", "/api/origin", nil, &up); err != nil || up.Collections.Last == nil || up.Collections.Last.Epoch != 2 || up.Collections.Every != 24*60*60 || up.Checks.Every != 7*24*60*60 {
		t.Errorf("%+v, %v", up, err)
	}
	for line, want := range map[string]string{
		"origin gc --grace 5m": "give 1h at least", "origin gc --grace soon": "is not a time", "origin gc --share 0.5": "write it as 25%", "origin gc --waste 101%": "is no part above 0",
		"origin verify --read-data all": "is no part above 0", "origin copy backup": "the URL of another store", "origin copy https://backup.example.com": "nothing is written over https", "origin copy file://" + filepath.Join(s.dir, "origin"): "the URL of another store", "node --origin-gc 1s": "give 1m or more",
	} {
		code, _, complaint := command(t, append(strings.Fields(line), "--data", data)...)
		if code == 0 || !strings.Contains(complaint, want) {
			t.Errorf("%s: code %d, %s", line, code, complaint)
		}
	}
	if out := s.well(t, "origin verify --read-data 100%"); !strings.Contains(out, "1 root") {
		t.Errorf("%s", out)
	}
	flipPacks(t, filepath.Join(s.dir, "origin"))
	code, out, complaint := command(t, "origin", "verify", "--read-data", "100%", "--data", data)
	if code != 1 || !strings.Contains(out, "image:debian") || !strings.Contains(complaint, "image:debian; import again") {
		t.Errorf("of damaged packs: code %d, %s%s", code, out, complaint)
	}
	if _, _, said := command(t, "doctor", "--data", data); !strings.Contains(said, "need a look") {
		t.Errorf("the doctor says %s", said)
	}
	s.well(t, "image import debian --replace "+disk)
	s.well(t, "origin verify --read-data 100%")
}

// TestOnlyPublishersAndAdminsCollect: a node of another role says so, and where to ask; it may look.
func TestOnlyPublishersAndAdminsCollect(t *testing.T) {
	first := serveNode(t)
	defer first.signal(t, syscall.SIGTERM)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(first.well(t, "token create --role node")), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := startCommand(t, os.Args[0], dir, []string{"node", "--data", filepath.Join(dir, "data"), "--origin", "file://" + filepath.Join(first.dir, "origin"), "--listen", "/ip4/127.0.0.1/tcp/0", "--join", "@" + token})
	s.await(t, "serving")
	defer s.signal(t, syscall.SIGTERM)
	code, out, complaint := command(t, "origin", "gc", "--data", filepath.Join(dir, "data"))
	if code != 1 || out != "" || !strings.Contains(complaint, "a publisher or an admin") || !strings.Contains(complaint, "grange mesh members") {
		t.Errorf("code %d, %s%s", code, out, complaint)
	}
	s.well(t, "origin verify")
}

// TestANodeStartsFromACopy of an origin that is gone: what it had is there.
func TestANodeStartsFromACopy(t *testing.T) {
	s := serveNode(t)
	disk := noise(t, 3)
	s.well(t, "image import debian "+disk)
	copied := "file://" + filepath.Join(s.dir, "copy")
	var report api.Replica
	if err := json.Unmarshal([]byte(s.well(t, "origin copy --json "+copied)), &report); err != nil || report.Sent.Objects == 0 || report.RecordsSent != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if out := s.well(t, "origin copy "+copied); !strings.Contains(out, "sent: 0 objects, 0 B, and 0 records") {
		t.Errorf("again: %s", out)
	}
	if out := s.well(t, "origin du"); !strings.Contains(out, "image:debian") {
		t.Errorf("%s", out)
	}
	s.signal(t, syscall.SIGTERM)
	s.ends(t)
	for _, gone := range []string{"origin", "data/cache"} {
		if err := os.RemoveAll(filepath.Join(s.dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	s = s.stranger(t, s.dir, []string{"--origin", copied})
	s.await(t, "serving")
	defer s.signal(t, syscall.SIGTERM)
	out := filepath.Join(s.dir, "out")
	s.well(t, "image export debian "+out)
	want, err := os.ReadFile(disk)
	if got, rerr := os.ReadFile(out); err != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes come back, %v, %v", len(got), err, rerr)
	}
	s.well(t, "origin verify --read-data 100%")
	s.well(t, "image import other "+noise(t, 4)) // it is an origin like any other
}

// flipPacks changes a byte of each pack at an origin.
func flipPacks(t *testing.T, origin string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(origin, "packs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b[len(b)/3] ^= 1
		n++
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("%d packs are damaged, %v", n, err)
	}
}
