//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/grangemesh/grange/node/volumes"
)

// checkTimeout is how long a program may take to find out whether it would start: it
// waits for the origin, among others.
const checkTimeout = 20 * time.Second

// awaitHandover returns a context that SIGUSR2 ends for a handover, and SIGHUP, so that
// the config file is read anew: this process
// stops, but for its disks, and becomes its program anew, which may be another
// version by then. A program that would not start a node, with this command line and the
// configuration of now, is refused while the old one still runs. Call the function when all has stopped, with the error of that: it does not
// return if a handover was asked for, since who uses the disks waits for somebody to
// serve them, whatever went wrong; unless the context before was ended meanwhile.
func awaitHandover(before context.Context, log *slog.Logger) (context.Context, func(error) error) {
	program, unknown := os.Executable() // now: later the path may be that of a deleted file
	ctx, end := context.WithCancelCause(before)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2, syscall.SIGHUP)
	go func() {
		defer signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP) // another one would end what stops, or hands over, until the new program takes it
		for {
			select {
			case <-ctx.Done():
				return
			case <-upgrade:
			}
			if err := errors.Join(unknown, starts(ctx, program)); err != nil {
				log.Error("no handover: the program would not start a node with this configuration", "program", program, "err", err)
				continue
			}
			end(volumes.ErrHandover)
			log.Info("handing over", "program", program)
		}
	}()
	return ctx, func(err error) error {
		if !errors.Is(context.Cause(ctx), volumes.ErrHandover) {
			return err
		}
		if before.Err() != nil {
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
