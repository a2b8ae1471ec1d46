package nbd_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/nbd"
)

// start runs a server on a unix socket until the test ends, and returns the URI
// of an export.
func start(tb testing.TB, cfg nbd.Config, name string) string {
	tb.Helper()
	_, uri := startServer(tb, cfg, name)
	return uri
}

func startServer(tb testing.TB, cfg nbd.Config, name string) (*nbd.Server, string) {
	tb.Helper()
	l, err := nbd.Listen(tb.Context(), "unix:"+filepath.Join(tb.TempDir(), "s"))
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Listeners = append(cfg.Listeners, l)
	s, err := nbd.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("run: %v", err)
		}
	})
	return s, nbd.URI(l.Addr(), name)
}

// waitFor returns once a server answers.
func waitFor(tb testing.TB, uri string) {
	tb.Helper()
	info := tool(tb, "nbdinfo", "libnbd-bin")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for exec.Command(info, "--size", uri).Run() != nil {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("%s does not answer", uri)
		}
	}
}
