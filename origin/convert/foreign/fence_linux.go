package foreign

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// programs is all that a child sees of the host's files, and its root: tools and
	// libraries, which are the same on each host of a distribution.
	programs = "/usr"
	// apart are the namespaces of a child: no network, no other processes. It has the
	// host's mounts, which it can't reach from its root, so that it keeps none busy.
	apart = syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
)

const (
	looks  = "with a view of the host's files: its tools are not in " + programs
	shares = "without namespaces of its own, which this host does not allow"
)

// fences are those that a host may allow, the best first.
func fences() []fence {
	if os.Geteuid() != 0 {
		own := uintptr(syscall.CLONE_NEWUSER | apart)
		return []fence{
			{&syscall.SysProcAttr{Cloneflags: own, Chroot: programs}, programs, ""},
			{&syscall.SysProcAttr{Cloneflags: own}, "", looks},
			{&syscall.SysProcAttr{}, "", shares + ", and with all rights of the node's user; run the node as root, or let users have namespaces"},
		}
	}
	other := &syscall.Credential{Uid: nobody, Gid: nobody}
	return []fence{
		{&syscall.SysProcAttr{Credential: other, Cloneflags: apart, Chroot: programs}, programs, ""},
		{&syscall.SysProcAttr{Credential: other, Cloneflags: apart}, "", looks},
		{&syscall.SysProcAttr{Credential: other, Chroot: programs}, programs, shares},
		{&syscall.SysProcAttr{Credential: other}, "", shares + ", and " + looks},
	}
}

// restricted starts cmd so that neither it nor what it starts gains rights by set-ID
// programs: that is a thread's, and a child's of it.
func restricted(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// socketpair returns two ends of a connection, one for a child.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "image"), os.NewFile(uintptr(fds[1]), "image of the child"), nil
}
