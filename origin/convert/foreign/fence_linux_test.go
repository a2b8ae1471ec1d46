package foreign

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// escape is what a parser that was taken over tries; it says what it got.
const escape = `
for f in "$1" /etc/passwd /proc/self/status /proc/1/cmdline /dev/null /tmp /home /root; do
	[ -e "$f" ] && echo "sees $f"
done
for p in "$2" $PPID; do kill -0 "$p" 2>/dev/null && echo "may signal $p"; done
(echo >/bin/it || echo >/it) 2>/dev/null && echo "writes"
unshare --user true 2>/dev/null && echo "has user namespaces"
ip link show 2>/dev/null | grep -v LOOPBACK | grep -o '^[0-9]: [^:]*'
setpriv --dump | grep no_new_privs:
`

// TestChildSeesNothing of the host, as root's child and as a user's.
func TestChildSeesNothing(t *testing.T) {
	const secret = "GRANGE_TEST_SECRET"
	if os.Getenv(secret) != "" { // the child of a user
		fmt.Print(escaped(t, os.Getenv(secret)))
		return
	}
	dir := t.TempDir()
	path, program := filepath.Join(dir, "secret"), filepath.Join(dir, "test")
	text, err := os.ReadFile(os.Args[0])
	if err = errors.Join(err, os.WriteFile(path, []byte("secret"), 0o666), os.WriteFile(program, text, 0o755), os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o777)); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{"root": escaped(t, path)}
	for user, id := range map[string]uint32{"nobody": nobody, "another": 12345} {
		cmd := exec.Command(program, "-test.run=^TestChildSeesNothing$")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), secret+"="+path, "TMPDIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got[user], _, _ = strings.Cut(string(out), "PASS")
	}
	for user, text := range got {
		if text != "no_new_privs: 1\n" {
			t.Errorf("%s: %s", user, text)
		}
	}
}

// escaped has a child try to, and returns what it says.
func escaped(t *testing.T, secret string) string {
	t.Helper()
	var out bytes.Buffer
	c, err := start(t.Context(), task{args: []string{"sh", "-c", escape, "sh", secret, fmt.Sprint(os.Getpid())}, out: &out, warn: func(text string) { t.Error(text) }})
	if err != nil {
		t.Fatal(err)
	}
	<-c.done
	if c.err != nil {
		t.Errorf("%v: %s", c.err, c.said.String())
	}
	return out.String()
}

// TestLesserFencesAreNamed: a tool that does not lie with the others has no fence that
// hides the host's files.
func TestLesserFencesAreNamed(t *testing.T) {
	dir, err := os.MkdirTemp("/", "usr") // which only begins like theirs
	if t.Cleanup(func() { os.RemoveAll(dir) }); err != nil {
		dir = t.TempDir()
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\necho \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	var out bytes.Buffer
	var warned []string
	c, err := start(t.Context(), task{args: []string{"tool", "works"}, out: &out, warn: func(text string) { warned = append(warned, text) }})
	if err != nil {
		t.Fatal(err)
	}
	<-c.done
	if out.String() != "works\n" || len(warned) != 1 || !strings.Contains(warned[0], "tool reads the source with") {
		t.Errorf("%q (%v), warned of %q", out.String(), c.err, warned)
	}
}
