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
	"syscall"
	"time"

	"github.com/grangemesh/grange/node/volumes"
)

// versionTimeout is how long a program may take to print its version.
const versionTimeout = 10 * time.Second

// awaitHandover returns a context that SIGUSR2 ends for a handover, and SIGHUP, so that
// the config file is read anew: this process
// stops, but for its disks, and becomes its program anew, which may be another
// version by then. A program that does not run is refused while the old one still
// does. Call the function when all has stopped, with the error of that: it does not
// return if a handover was asked for, since who uses the disks waits for somebody to
// serve them, whatever went wrong; unless the context before was ended meanwhile.
func awaitHandover(before context.Context, log *slog.Logger) (context.Context, func(error) error) {
	program, unknown := os.Executable() // now: later the path may be that of a deleted file
	ctx, end := context.WithCancelCause(before)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2, syscall.SIGHUP)
	go func() {
		defer signal.Stop(upgrade)
		for {
			select {
			case <-ctx.Done():
				return
			case <-upgrade:
			}
			if err := errors.Join(unknown, runs(ctx, program)); err != nil {
				log.Error("no handover: the program does not run", "program", program, "err", err)
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
		signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP) // until the new program takes it, another one would end it
		return errors.Join(err, fmt.Errorf("run %s anew: %w", program, syscall.Exec(program, os.Args, os.Environ())))
	}
}

// runs fails if the program can't even say its version.
func runs(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	return exec.CommandContext(ctx, program, "--version").Run()
}
