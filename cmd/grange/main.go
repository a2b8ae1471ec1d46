// Command grange is one member of a mesh, and the command line that asks it.
package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	ctx, last := untilAsked()
	os.Exit(run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}, last))
}

// lastCall reports whether the process has been asked to end, and gives the signals that
// ask for it back to the system: who asks later ends the process at once.
type lastCall func() bool

// untilAsked returns a context that ends when the process is asked to; a second time ends
// it at once.
func untilAsked() (context.Context, lastCall) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, asked := <-signals // one that came before the close too
		signal.Stop(signals)
		if asked {
			cancel()
		}
	}()
	return ctx, sync.OnceValue(func() bool {
		signal.Stop(signals) // which returns when no signal is on its way to the channel
		close(signals)
		<-done
		return ctx.Err() != nil
	})
}
