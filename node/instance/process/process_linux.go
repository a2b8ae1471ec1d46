// Package process runs a workload as a process of this host that outlives the node which has started it, and finds it
// again: by a descriptor of it, when it began, and which boot of the host that was. A number alone may be another's.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// ID tells a process from all others that this host has, had, and will have.
type ID struct {
	PID int `json:"pid"`
	// Began is when it was started, in the kernel's ticks since the boot, whose ID is Boot.
	Began uint64 `json:"began"`
	Boot  string `json:"boot"`
}

// Config says what to start.
type Config struct {
	// Command is the program, looked for in the PATH of Env, and its arguments.
	Command []string
	// Dir is where it works.
	Dir string
	// Env is all of its environment, as NAME=VALUE.
	Env []string
	// User has it run as another; nil is as the node.
	User *syscall.Credential
	// Limits of resources, by their names in limits.conf(5).
	Limits map[string]uint64
	// Log is the file that what it says is added to.
	Log string
	// Cgroup is the folder of a control group that it begins in; "" is the node's own.
	Cgroup string
}

// Process is one that runs, or did. The caller closes it, which leaves it running.
type Process struct {
	ID
	fd     *os.File // of the process
	child  *os.Process
	cgroup string
}

// Start starts a process in a session of its own. One that can't be started is ErrInvalid.
func Start(cfg Config) (*Process, error) {
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	path, err := find(cfg)
	if err != nil {
		return nil, err
	}
	cmd := exec.Cmd{Path: path, Args: cfg.Command, Dir: cfg.Dir, Env: cfg.Env, Stdout: log, Stderr: log}
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cfg.User, PidFD: &fd}
	if cfg.Cgroup != "" {
		group, err := os.Open(cfg.Cgroup)
		if err != nil {
			return nil, err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: start %s: %w", content.ErrInvalid, cfg.Command[0], err)
	}
	p := &Process{child: cmd.Process, cgroup: cfg.Cgroup}
	if p.ID, err = idOf(cmd.Process.Pid); err == nil {
		p.fd, err = descriptor(fd)
	}
	for name, n := range cfg.Limits {
		if err == nil {
			err = limit(p.PID, name, n)
		}
	}
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), waited(cmd.Process))
	}
	return p, nil
}

func limit(pid int, name string, n uint64) error {
	what, ok := map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
		"memlock": unix.RLIMIT_MEMLOCK, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rtprio": unix.RLIMIT_RTPRIO, "stack": unix.RLIMIT_STACK,
	}[name]
	if !ok {
		return fmt.Errorf("%w: no limit is called %.20q", content.ErrInvalid, name)
	}
	return os.NewSyscallError("prlimit", unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil))
}

func waited(child *os.Process) error {
	_, err := child.Wait()
	return err
}

// find looks for the program in the PATH that it is to have.
func find(cfg Config) (string, error) {
	if len(cfg.Command) == 0 {
		return "", fmt.Errorf("%w: no command", content.ErrInvalid)
	}
	name := cfg.Command[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(cfg.Dir, name)
		}
		return name, nil
	}
	for _, env := range cfg.Env {
		folders, ok := strings.CutPrefix(env, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(folders) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%w: there is no program %s in the PATH of the instance", content.ErrInvalid, name)
}

// descriptor has Go's poller wait for what a descriptor tells.
func descriptor(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Adopt finds a process that an earlier start has begun; it is ErrNotFound once that has ended.
func Adopt(id ID, cgroup string) (*Process, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d: %w", id.PID, content.ErrNotFound)
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	now, err := idOf(id.PID) // behind the descriptor: it is of the process that this tells of, or of one before it
	if err == nil && now != id {
		err = content.ErrNotFound
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: %w", id.PID, err), f.Close())
	}
	return &Process{ID: id, fd: f, cgroup: cgroup}, nil
}

// idOf reads who has a number now.
func idOf(pid int) (ID, error) {
	began, _, err := look(pid)
	var boot []byte
	if err == nil {
		boot, err = os.ReadFile("/proc/sys/kernel/random/boot_id")
	}
	return ID{pid, began, string(bytes.TrimSpace(boot))}, err
}

// look reads when a process began, and its session; ErrNotFound is for one that has ended, too.
func look(pid int) (began uint64, session int, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, 0, content.ErrNotFound
	}
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // a name may have anything but what follows it
	if len(fields) < 20 || fields[0] == "Z" {                                 // from the third of proc_pid_stat(5) on
		return 0, 0, content.ErrNotFound
	}
	session, err = strconv.Atoi(fields[3])
	if err == nil {
		began, err = strconv.ParseUint(fields[19], 10, 64)
	}
	return began, session, err
}

// Wait returns once the process has ended: how, as far as this node has started it, else nil.
func (p *Process) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		_ = p.fd.SetReadDeadline(time.Time{})
		return context.Cause(ctx)
	}
	if err != nil || p.child == nil {
		return err
	}
	state, err := p.child.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("it has ended: %s", state)
	}
	return err
}

// Signal sends one to the process, and to none other.
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(failed, unix.ESRCH) {
		failed = nil
	}
	return errors.Join(err, failed)
}

// Stop asks the process to end, and ends it by force when it has not within grace: with all of its control group, or of
// its session's first process group.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := p.Wait(patient); ctx.Err() != nil || patient.Err() == nil {
		return p.sweep(ctx.Err())
	} else if err == nil {
		return p.sweep(nil)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := p.Wait(ctx); ctx.Err() != nil {
		return err
	}
	return p.sweep(nil)
}

// sweep ends what the process has left: its control group, or else its session.
func (p *Process) sweep(err error) error {
	if err != nil {
		return err
	}
	if p.cgroup != "" {
		if err = os.WriteFile(filepath.Join(p.cgroup, "cgroup.kill"), []byte("1"), 0); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	}
	if now, err := idOf(p.PID); err == nil && now != p.ID { // the number is another's, and then nobody of the session is left
		return nil
	}
	names, err := os.ReadDir("/proc")
	for _, name := range names {
		if pid, failed := strconv.Atoi(name.Name()); failed == nil && pid != p.PID {
			err = errors.Join(err, p.end(pid))
		}
	}
	return err
}

// end ends a process of the session.
func (p *Process) end(pid int) error {
	if _, session, err := look(pid); err != nil || session != p.PID {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if _, session, err := look(pid); err != nil || session != p.PID { // it was another's by then
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	return nil
}

// Close lets go of the process, which goes on if it runs.
func (p *Process) Close() error { return p.fd.Close() }
