package mounts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content/tree"
)

// TestSignals: who waits for what is shown is not told of signals that it handles, and ends when it is killed.
func TestSignals(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	for _, name := range []string{"one", "two"} {
		must(t, os.Mkdir(filepath.Join(src, name), 0o755), os.WriteFile(filepath.Join(src, name, "file"), nil, 0o644))
	}
	reads, goOn, of := make(chan struct{}), make(chan struct{}), planted(t, src)
	m := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), of.Over(func(ctx context.Context, p []byte, at int64) error {
		if at > int64(of.Top().Number(0)-tree.FirstNumber-1) {
			reads <- struct{}{}
			select {
			case <-goOn:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return of.ReadStream(ctx, p, at)
	}))
	_, err := m.Mount(t.Context(), "debian", dir)
	must(t, err)

	thread, opened := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		fd, err := unix.Open(filepath.Join(dir, "one/file"), unix.O_RDONLY, 0)
		opened <- errors.Join(err, unix.Close(fd))
	}()
	waits := <-thread
	<-reads
	must(t, unix.Tgkill(unix.Getpid(), waits, unix.SIGURG)) // which Go's runtime handles
	select {
	case err := <-opened:
		t.Fatalf("it is told of a signal: %v", err)
	case <-time.After(3 * killedEvery):
	}
	goOn <- struct{}{}
	must(t, <-opened)

	handles := exec.Command("bash", "-c", `trap : TERM; echo begun; read x < `+filepath.Join(dir, "two/file"))
	out, err := handles.StdoutPipe()
	must(t, err, handles.Start())
	_, err = out.Read(make([]byte, len("begun\n")))
	must(t, err)
	<-reads
	must(t, handles.Process.Signal(syscall.SIGTERM), handles.Process.Kill())
	if err := handles.Wait(); err == nil {
		t.Error("it was not killed")
	}
	must(t, m.Unmount(t.Context(), dir))
}
