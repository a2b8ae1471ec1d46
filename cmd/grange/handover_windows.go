package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/grangemesh/grange/cmd/grange/supervise"
)

// No process becomes another here, so there is no handover, nothing is inherited, and no token is taken off the command line.

const handovers = false

func hearEarly() <-chan os.Signal { return nil }

func awaitHandover(ctx context.Context, _ lastCall, _ <-chan os.Signal, _ *supervise.Supervisor, _ *slog.Logger) (context.Context, func(error) error) {
	return ctx, func(err error) error { return err }
}

func inherited() map[string]*os.File { return nil }

func bequeath(map[string]*os.File) error { return nil }

func again([]string, string) error { return nil }

// giveTo does nothing: here the folder's rights are its files'.
func giveTo(*os.File, string) error { return nil }
