package oci

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
)

const theirs = `server = "https://docker.io"
ca = "/etc/ca.pem"

[host."https://mirror.example"]
  capabilities = ["pull"]
`

// TestConfigureAndBack: what is written comes first and keeps the rest, twice is once, and what was there
// comes back.
func TestConfigureAndBack(t *testing.T) {
	dir := t.TempDir()
	file := func(registry string) string { return filepath.Join(dir, registry, hostsFile) }
	run := func(c configure) {
		t.Helper()
		c.CertsDir, c.Address = dir, "127.0.0.1:5050"
		if err := c.Run(t.Context(), &ask.Node{}, ask.Stdio{Out: io.Discard}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := os.MkdirAll(filepath.Dir(file("docker.io")), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("docker.io"), []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	run(configure{Registry: []string{"docker.io", everyRegistry}})
	once := read(file("docker.io"))
	ours, mirror, server := strings.Index(once, "127.0.0.1:5050"), strings.Index(once, "mirror.example"), strings.Index(once, "server =")
	if ours < server || mirror < ours || read(filepath.Join(dir, "docker.io", backupFile)) != theirs {
		t.Errorf("%s", once)
	}
	run(configure{Registry: []string{"docker.io"}})
	if read(file("docker.io")) != once {
		t.Errorf("twice: %s", read(file("docker.io")))
	}
	run(configure{Remove: true})
	if read(file("docker.io")) != theirs {
		t.Errorf("put back: %s", read(file("docker.io")))
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*")); err != nil || len(left) != 1 {
		t.Errorf("there stay %q, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, everyRegistry)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", everyRegistry, err)
	}
	run(configure{Registry: []string{"docker.io"}})
	if err := os.WriteFile(file("docker.io"), []byte(read(file("docker.io"))+"# later\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(configure{Remove: true})
	if got := read(file("docker.io")); got != theirs+"# later\n" {
		t.Errorf("changed meanwhile: %s", got)
	}
	for _, c := range []configure{{Registry: []string{"../x"}}, {Registry: []string{"a/b"}}} {
		c.CertsDir, c.Address = dir, "127.0.0.1:5050"
		if err := c.Run(t.Context(), &ask.Node{}, ask.Stdio{Out: io.Discard}); !errors.Is(err, ask.ErrUsage) {
			t.Errorf("%q: %v", c.Registry, err)
		}
	}
}

// TestHandmadeFiles: lists over several lines stay whole, credentials stay hidden, and what containerd would not read
// is not written.
func TestHandmadeFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "reg.example", hostsFile)
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	c := configure{Registry: []string{"reg.example"}, CertsDir: dir, Address: "127.0.0.1:5050"}
	for _, one := range []struct{ before, after string }{
		{"client = [\n  [\"/a\", \"/b\"],\n]\n\n[host.\"https://mirror\"]\n  [host.\"https://mirror\".header]\n    Authorization = \"Basic x\"\n", "]\n\n" + c.block() + "[host.\"https://mirror\"]\n"},
		{"[header]\n  x = \"y\"\n", c.block() + "[header]\n"},
		{"[ host . \"https://mirror\" ]\n", c.block() + "[ host"},
		{"[host.\"http://127.0.0.1:5050\"]\n  skip_verify = true\n", ""},
		{blockBegin + "\n[host.\"http://127.0.0.1:5050\"]\n", ""},
	} {
		os.Remove(file)
		if err := os.WriteFile(file, []byte(one.before), 0o600); err != nil {
			t.Fatal(err)
		}
		err := c.Run(t.Context(), &ask.Node{}, ask.Stdio{Out: io.Discard})
		b, _ := os.ReadFile(file)
		if one.after == "" && (err == nil || string(b) != one.before) || one.after != "" && (err != nil || !strings.Contains(string(b), one.after)) {
			t.Errorf("%v:\n%s", err, b)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*", hostsFile+"*"))
		for _, f := range files {
			if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", f, info.Mode(), err)
			}
		}
		os.Remove(filepath.Join(filepath.Dir(file), backupFile))
	}
}
