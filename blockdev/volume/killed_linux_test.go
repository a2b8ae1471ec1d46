package volume

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content/durable"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// writerVariable names the volume's folder to a process that does nothing but write.
const writerVariable = "GRANGE_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerVariable); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func writeForever(dir string) error {
	v, err := Open(config(dir))
	p := bytes.Repeat([]byte{0xaa}, extents.Unit)
	for said := false; err == nil; said = true {
		if err = v.WriteAt(context.Background(), p, 0, false); err == nil && !said {
			fmt.Println("written")
		}
	}
	return err
}

// TestWriteOfAKilledProcess stops a process in the middle of a write, and kills it: until
// that write has come to its end the volume can't be opened, so that it can't land behind
// one of the next process, to which a kernel's disk gives the request again.
func TestWriteOfAKilledProcess(t *testing.T) {
	disk := frozenLater(t)
	dir := filepath.Join(disk, "v")
	must(t, Create(dir, testID()))
	writer := exec.Command(os.Args[0])
	writer.Env = append(os.Environ(), writerVariable+"="+dir)
	writer.Stderr = os.Stderr
	out, err := writer.StdoutPipe()
	must(t, err)
	must(t, writer.Start())
	_, err = out.Read(make([]byte, 1))
	must(t, err)

	thaw := freeze(t, disk)
	defer thaw()
	pid := writer.Process.Pid
	await(t, "a write that is held", func() bool { return strings.Contains(states(pid), "D") })
	must(t, writer.Process.Kill())
	await(t, "the end of all but the write", func() bool { return strings.Trim(states(pid), "ZX") == "D" })
	lock, err := os.Open(filepath.Join(dir, "lock"))
	must(t, err)
	free, err := durable.TryLock(lock)
	must(t, err)
	if free {
		t.Error("the volume can be opened beside a write of a process that was killed")
	}
	must(t, lock.Close())
	thaw()
	_ = writer.Wait() // it was killed
	v, err := Open(config(dir))
	must(t, err)
	want := bytes.Repeat([]byte{0xbb}, extents.Unit)
	for range 2 {
		must(t, v.WriteAt(t.Context(), want, 0, true))
		got := make([]byte, extents.Unit)
		if must(t, v.ReadAt(t.Context(), got, 0)); !bytes.Equal(got, want) {
			t.Errorf("the newer write is not there: %x", got[:8])
		}
		must(t, v.Close())
		v, err = Open(config(dir))
		must(t, err)
	}
	must(t, v.Close())
}

// frozenLater mounts a file system that can be frozen.
func frozenLater(t *testing.T) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 256<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q, as root: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// freeze keeps a file system from being changed until thaw is called.
func freeze(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878
	must(t, unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0))
	done := false
	return func() {
		if !done {
			done = true
			must(t, unix.IoctlSetInt(int(f.Fd()), fiThaw, 0))
			must(t, f.Close())
		}
	}
}

// states has a letter for each thread of a process.
func states(pid int) (out string) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if _, rest, ok := strings.Cut(string(b), ") "); err == nil && ok {
			out += rest[:1]
		}
	}
	return out
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("no %s after 30 s", what)
		}
	}
}
