package buckettest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// run starts a child and waits for its end. The child dies with this process,
// even when that is killed. The kernel means the thread that started it, so the
// thread is held until then.
func run(cmd *exec.Cmd, started chan<- error, end chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(end)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // it is killed, which is no news
	}
}
