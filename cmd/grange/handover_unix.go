//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/cmd/grange/supervise"
	"github.com/grangemesh/grange/node/volumes"
)

// checkTimeout is how long a program may take, with the origin, to check its start.
const checkTimeout = 20 * time.Second

// hearEarly keeps the first request for a handover that comes before awaitHandover: until
// the process listens, one for reading the configuration anew would end it.
func hearEarly() <-chan os.Signal {
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2, syscall.SIGHUP)
	return upgrade
}

// awaitHandover returns a context that a signal of hearEarly ends: SIGUSR2 for a handover, and SIGHUP so that the config file
// is read anew. This process stops, but for its disks, and becomes its program anew, which may be another version by then. A
// program that would not start a node as things are now is refused while the old one still runs. Call the function when all has
// stopped, with the error of that: it does not return if a handover was asked for, since who uses the disks waits for somebody
// to serve them, whatever went wrong; unless the last call says that the process was asked to end meanwhile.
func awaitHandover(before context.Context, last lastCall, upgrade <-chan os.Signal, watch *supervise.Supervisor, log *slog.Logger) (context.Context, func(error) error) {
	program, unknown := os.Executable() // now: later the path may be that of a deleted file
	ctx, end := context.WithCancelCause(before)
	var said atomic.Bool // that it hands over
	go func() {
		defer signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP) // another one would end what stops, or hands over, until the new program takes it
		for {
			select {
			case <-ctx.Done():
				return
			case <-upgrade:
			}
			watch.Reloading()
			if err := errors.Join(unknown, starts(ctx, program)); err != nil {
				log.Error("no handover: the program would not start a node with this configuration", "program", program, "err", err)
				watch.Refused(err)
				continue
			}
			said.Store(true)
			log.Info("handing over", "program", program) // before it ends: this process may be another at once
			end(volumes.ErrHandover)
		}
	}()
	return ctx, func(err error) error {
		switch {
		case !said.Load():
			return err
		case last() || !errors.Is(context.Cause(ctx), volumes.ErrHandover): // it was asked to end meanwhile, or between its word and its deed
			log.Warn("no handover: the node is to stop; its disks stay with the kernel, and their users wait until it is back")
			return err
		}
		if err != nil {
			log.Error("handing over all the same", "err", err)
		}
		return errors.Join(err, fmt.Errorf("run %s anew: %w", program, syscall.Exec(program, os.Args, os.Environ())))
	}
}

// starts fails if the program says that it would not start a node.
func starts(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, append(slices.Clone(os.Args[1:]), "--check")...).CombinedOutput()
	if err != nil {
		_, said, _ := strings.Cut(string(out), "grange: ")
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said))
	}
	return nil
}

// handovers: a process can become another and keep what it listens on.
const handovers = true

// inheritedEnv tells a process the descriptors left to it, by address, in JSON.
const inheritedEnv = "GRANGE_INHERITED"

// inherited are the sockets that were left to this process, and not to what it starts.
func inherited() map[string]*os.File {
	var numbers map[string]int
	if json.Unmarshal([]byte(os.Getenv(inheritedEnv)), &numbers) != nil {
		return nil
	}
	os.Unsetenv(inheritedEnv)
	files := map[string]*os.File{}
	for address, fd := range numbers {
		unix.CloseOnExec(fd)
		files[address] = os.NewFile(uintptr(fd), address)
	}
	return files
}

// bequeath leaves sockets to the next process.
func bequeath(files map[string]*os.File) error {
	numbers := map[string]int{}
	for address, f := range files {
		fd := f.Fd()
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("leave %s to the next process: %w", address, err)
		}
		numbers[address] = int(fd)
	}
	b, err := json.Marshal(numbers)
	if err != nil {
		return err
	}
	return os.Setenv(inheritedEnv, string(b))
}

// again runs this program with other arguments in place of itself, and input on its
// standard input. It returns only when that is not possible.
func again(args []string, input string) error {
	program, err := os.Executable()
	var r, w *os.File
	if err == nil {
		r, w, err = os.Pipe()
	}
	if err == nil {
		_, err = w.WriteString(input) // which a pipe holds without a reader
		err = errors.Join(err, w.Close())
	}
	if err == nil {
		err = unix.Dup2(int(r.Fd()), 0)
	}
	if err == nil {
		signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP) // the new one reads all anew, and listens then
		err = unix.Exec(program, args, os.Environ())
	}
	return fmt.Errorf("hide the token: %w", err)
}

// giveTo gives a file to a folder's owner, as which the node runs: root may ask it.
func giveTo(f *os.File, folder string) error {
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() {
		return nil
	}
	return f.Chown(int(s.Uid), int(s.Gid))
}
