package foreign

import (
	"os"
	"syscall"
)

// fences are the walls around a child, the best first: a later one is taken where
// the kernel, or a container, forbids those before.
func fences() []*syscall.SysProcAttr {
	if os.Geteuid() != 0 {
		return []*syscall.SysProcAttr{
			{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC},
			{},
		}
	}
	other := &syscall.Credential{Uid: nobody, Gid: nobody}
	return []*syscall.SysProcAttr{
		{Credential: other, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC},
		{Credential: other},
	}
}
