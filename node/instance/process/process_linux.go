package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// Process is one that runs, or did. The caller closes it, which leaves it running.
type Process struct {
	ID
	fd     *os.File // of the process
	child  *os.Process
	cgroup string
}

// Start starts a process in a session of its own. One that can't be started is ErrInvalid.
func Start(cfg Config) (*Process, error) {
	cmd, log, err := commandOf(cfg)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fd := -1
	cmd.SysProcAttr.PidFD = &fd
	if cfg.Cgroup != "" {
		group, err := os.Open(cfg.Cgroup)
		if err != nil {
			return nil, err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if cmd.SysProcAttr.Ptrace = len(cfg.Limits) > 0; cmd.SysProcAttr.Ptrace { // it stands still until it is limited
		runtime.LockOSThread() // the one that it waits for
		defer runtime.UnlockOSThread()
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: start %s: %w", content.ErrInvalid, cfg.Command[0], err)
	}
	p := &Process{child: cmd.Process, cgroup: cfg.Cgroup}
	if p.ID, _, err = whoIs(cmd.Process.Pid); err == nil { // also when it has ended by now
		p.fd, err = descriptor(fd)
	}
	if err == nil && cmd.SysProcAttr.Ptrace {
		err = limited(p.PID, cfg.Limits)
	}
	if err != nil {
		err = errors.Join(err, kill(fd, p.PID), waited(cmd.Process))
		if p.fd != nil {
			err = errors.Join(err, p.fd.Close())
		}
		return nil, err
	}
	return p, nil
}

// commandOf is what is to be run, in a session of its own; the caller closes the log.
func commandOf(cfg Config) (*exec.Cmd, *os.File, error) {
	path, err := find(cfg)
	if err != nil {
		return nil, nil, err
	}
	who, err := userOf(cfg.User)
	if err != nil {
		return nil, nil, err
	}
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, err
	}
	return &exec.Cmd{Path: path, Args: cfg.Command, Dir: cfg.Dir, Env: cfg.Env, Stdout: log, Stderr: log, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: who}}, log, nil
}

// Run runs a command to its end, and returns its exit status; ctx ends it. Limits and Cgroup are for Start.
func Run(ctx context.Context, cfg Config) (status int, err error) {
	cmd, log, err := commandOf(cfg)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: start %s: %w", content.ErrInvalid, cfg.Command[0], err)
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	err = cmd.Wait()
	if stop(); ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Give has a file be another user's; nothing for "".
func Give(path, name string) error {
	who, err := userOf(name)
	if err != nil || who == nil {
		return err
	}
	return os.Chown(path, int(who.Uid), int(who.Gid))
}

// userOf finds who a process is to run as; nil is as the node.
func userOf(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("user %.60q: %w: this host has none of that name", name, content.ErrInvalid)
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	out := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	groups, err := u.GroupIds()
	for _, g := range groups {
		if n, failed := strconv.ParseUint(g, 10, 32); failed == nil {
			out.Groups = append(out.Groups, uint32(n))
		}
	}
	return out, err
}

// limited lets a process go on that stands still at its first instruction.
func limited(pid int, limits map[string]uint64) error {
	var err error = unix.EINTR
	for err == unix.EINTR {
		err = unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
	}
	for name, n := range limits {
		if err == nil {
			err = limit(pid, name, n)
		}
	}
	if err == nil {
		err = os.NewSyscallError("ptrace", unix.PtraceDetach(pid))
	}
	return err
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

// idOf reads who has a number now; ErrNotFound is for one that has ended, too.
func idOf(pid int) (ID, error) {
	id, ended, err := whoIs(pid)
	if err == nil && ended {
		err = content.ErrNotFound
	}
	return id, err
}

// whoIs reads who has a number, and whether that has ended and was not waited for.
func whoIs(pid int) (id ID, ended bool, err error) {
	began, _, ended, err := look(pid)
	var boot []byte
	if err == nil {
		boot, err = os.ReadFile("/proc/sys/kernel/random/boot_id")
	}
	return ID{pid, began, string(bytes.TrimSpace(boot))}, ended, err
}

// look reads when a process began, its session, and whether it has ended and was not waited for.
func look(pid int) (began uint64, session int, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, 0, false, content.ErrNotFound
	}
	if err != nil {
		return 0, 0, false, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // a name may have anything but what follows it
	if len(fields) < 20 {                                                     // from the third of proc_pid_stat(5) on
		return 0, 0, false, content.ErrNotFound
	}
	session, err = strconv.Atoi(fields[3])
	if err == nil {
		began, err = strconv.ParseUint(fields[19], 10, 64)
	}
	return began, session, fields[0] == "Z", err
}

// Wait returns once the process has ended: how, as far as this node has started it, else nil.
func (p *Process) Wait(ctx context.Context) error {
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)); close(told) })
	raw, err := p.fd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return err == nil && n > 0
		})
	}
	if !stop() {
		<-told // a later Wait is not to find that deadline
		return errors.Join(p.fd.SetReadDeadline(time.Time{}), context.Cause(ctx))
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

// signal sends one to the process, and to none other.
func (p *Process) signal(sig unix.Signal) error {
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
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := p.Wait(patient); !p.HasEnded() {
		if ctx.Err() != nil {
			return err
		}
		if err := p.signal(unix.SIGKILL); err != nil {
			return err
		}
		sure, cancel := context.WithTimeout(ctx, killedWait)
		defer cancel()
		if err := p.Wait(sure); !p.HasEnded() {
			return fmt.Errorf("it goes on although it was killed: %w", err)
		}
	}
	return p.sweep()
}

// HasEnded reports whether the process has, as far as that can be told.
func (p *Process) HasEnded() bool {
	now, err := idOf(p.PID)
	return err == nil && now != p.ID || errors.Is(err, content.ErrNotFound)
}

// sweep ends what the process has left: its control group, or else its session.
func (p *Process) sweep() (err error) {
	if p.cgroup != "" {
		return sweepGroup(p.cgroup)
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
	if _, session, ended, err := look(pid); err != nil || ended || session != p.PID {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if _, session, ended, err := look(pid); err != nil || ended || session != p.PID { // it was another's by then
		return nil
	}
	return kill(fd, pid)
}

const (
	// killedWait is how long a process is waited for that was killed: one that waits for a disk may not end before that
	// answers.
	killedWait = 30 * time.Second
	// sweeps bounds how often it is looked for processes that others have started meanwhile.
	sweeps = 100
	// sweepWait is how long one that is killed is waited for, in milliseconds.
	sweepWait = 1000
)

// sweepGroup ends all that is in a control group and those in it, and waits a while until they are empty.
func sweepGroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for range sweeps {
		events, failed := os.Open(filepath.Join(dir, "cgroup.events"))
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		left, err := io.ReadAll(events)
		empty := bytes.Contains(left, []byte("populated 0"))
		if err == nil && !empty { // the kernel tells of a change since it was read
			err = poll(int(events.Fd()), unix.POLLPRI)
		}
		if err = errors.Join(err, events.Close()); err != nil || empty {
			return err
		}
	}
	return fmt.Errorf("%w: what is in control group %s does not end", content.ErrUnavailable, dir)
}

// Sweep ends all processes of this host that have a variable in their environment, NAME=FOLDER, but for this one, and for those
// in containers to whom that is another folder; and what is in a control group, unless that is "".
func Sweep(variable, cgroup string) error {
	if cgroup != "" {
		if err := sweepGroup(cgroup); err != nil {
			return err
		}
	}
	for range sweeps {
		found, err := sweepOnce(variable)
		if err != nil || found == 0 {
			return err
		}
	}
	return fmt.Errorf("%w: processes with %s come faster than they are ended", content.ErrUnavailable, variable)
}

func sweepOnce(variable string) (found int, err error) {
	names, err := os.ReadDir("/proc")
	for _, name := range names {
		pid, failed := strconv.Atoi(name.Name())
		if failed != nil || pid == os.Getpid() || !has(pid, variable) {
			continue
		}
		fd, failed := unix.PidfdOpen(pid, 0)
		if failed != nil {
			continue
		}
		if has(pid, variable) { // behind the descriptor: it is of the process that has it
			found++
			err = errors.Join(err, kill(fd, pid))
		}
		err = errors.Join(err, unix.Close(fd))
	}
	return found, err
}

// kill ends a process, and waits until it has.
func kill(fd, pid int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	return poll(fd, unix.POLLIN)
}

// poll waits a while for what a descriptor tells.
func poll(fd int, event int16) error {
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, sweepWait); err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("poll", err)
	}
	return nil
}

// has reports whether a process has a variable; one that this user may not look at has not.
func has(pid int, variable string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), variable) {
		return false
	}
	_, dir, _ := strings.Cut(variable, "=")
	ours, err := os.Stat(dir)
	theirs, failed := os.Stat(fmt.Sprintf("/proc/%d/root/%s", pid, dir))
	return err != nil || failed != nil || os.SameFile(ours, theirs)
}

// Close lets go of the process, which goes on if it runs.
func (p *Process) Close() error { return p.fd.Close() }
