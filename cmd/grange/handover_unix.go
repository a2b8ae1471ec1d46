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

// awaitHandover returns a context that SIGUSR2 ends for a handover: this process
// stops, but for its disks, and becomes its program anew, which may be another
// version by then. Call the function when all has stopped: it does not return if
// a handover was asked for. A program that does not run is refused while the old
// one still does.
func awaitHandover(ctx context.Context, log *slog.Logger) (context.Context, func() error) {
	program, unknown := os.Executable() // now: later the path may be that of a deleted file
	ctx, end := context.WithCancelCause(ctx)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)
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
			log.Info("handing over", "program", program)
			end(volumes.ErrHandover)
		}
	}()
	return ctx, func() error {
		if !errors.Is(context.Cause(ctx), volumes.ErrHandover) {
			return nil
		}
		return fmt.Errorf("run %s anew: %w", program, syscall.Exec(program, os.Args, os.Environ()))
	}
}

// runs fails if the program can't even say its version.
func runs(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	return exec.CommandContext(ctx, program, "--version").Run()
}
