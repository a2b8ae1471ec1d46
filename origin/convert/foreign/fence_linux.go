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

// socketpair returns two ends of a connection, one for a child.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "image"), os.NewFile(uintptr(fds[1]), "image of the child"), nil
}
