package throwaway

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// leastNice is the lowest priority at the processors.
	leastNice = 19
	// idleIO is the class of who has the disk when nobody else wants it: see ioprio_set(2), whose numbers libraries lack.
	idleIO, ioClassShift, ioWhoProcess = 3, 13, 1
	// firstToGo has the kernel end a process before all others when memory is short; see proc_pid_oom_score_adj(5).
	firstToGo = "1000"
)

// run runs a command to its end, after all others of this host. It is killed when ctx ends, and when this process does. The
// command's temporary files are in dir; out gets what it says.
func run(ctx context.Context, command []string, dir string, out io.Writer) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return fmt.Errorf("%w: machines run in %s, which this host lacks: install it: %w", content.ErrUnavailable, command[0], err)
	}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good, and so it ends with this goroutine: the command has its priorities, and dies with it
		ended <- runLast(ctx, &exec.Cmd{Path: path, Args: command, Dir: dir, Env: []string{"TMPDIR=" + dir}, Stdout: out, Stderr: out})
	}()
	return <-ended
}

func runLast(ctx context.Context, cmd *exec.Cmd) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, leastNice); err != nil {
		return os.NewSyscallError("setpriority", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, 0, idleIO<<ioClassShift); errno != 0 {
		return os.NewSyscallError("ioprio_set", errno)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: start %s: %w", content.ErrUnavailable, cmd.Path, err)
	}
	_ = os.WriteFile("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/oom_score_adj", []byte(firstToGo), 0) // where it may
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: the emulator failed: %w", content.ErrInvalid, err)
	}
	return nil
}
