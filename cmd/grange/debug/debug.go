// Package debug serves what a process is like inside: profiles, as `go tool pprof` takes
// them, and variables in the form of expvar. Nothing is asked of who looks, so it is for
// loopback; and nothing is registered with what all of a process share.
package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"time"

	"github.com/grangemesh/grange/node/api"
)

// headerTimeout is how long a client may take to ask: it is of this host as a rule.
const headerTimeout = 5 * time.Second

// Address is where to listen: on loopback where no host is said.
func Address(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || port == "" {
		return "", fmt.Errorf("--debug %q: want HOST:PORT, or :PORT for this host alone", text)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// Open reports whether others than this host's users may look there.
func Open(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err != nil || !api.IsLoopback(host)
}

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/vars", func(w http.ResponseWriter, _ *http.Request) {
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_ = json.NewEncoder(w).Encode(map[string]any{"cmdline": os.Args, "memstats": memory, "goroutines": runtime.NumGoroutine()}) // who asked may be gone
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !api.IsOwn(r.Host) {
			http.Error(w, "ask by the address of this host, not by a name", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Serve answers what comes to l until ctx ends, and cuts off what is under way then.
func Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: handler(), ReadHeaderTimeout: headerTimeout}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--debug %s: %w", l.Addr(), err)
	}
	return nil
}
