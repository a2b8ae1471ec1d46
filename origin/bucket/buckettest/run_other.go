//go:build !linux

package buckettest

import "os/exec"

// run starts a child and waits for its end.
func run(cmd *exec.Cmd, started chan<- error, end chan<- struct{}) {
	defer close(end)
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // it is killed, which is no news
	}
}
