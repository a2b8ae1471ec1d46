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
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/api"
)

const (
	// headerTimeout is how long a client may take to ask: it is of this host as a rule.
	headerTimeout = 5 * time.Second
	// stopTimeout is how long a profile that is being taken keeps a stop.
	stopTimeout = time.Second
)

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

// Handler serves profiles and variables; the latter have the metrics too.
func Handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/vars", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		if err := json.NewEncoder(w).Encode(variables(metrics)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page that a browser shows may have its host's name mean this host.
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if net.ParseIP(strings.Trim(host, "[]")) == nil && host != "localhost" {
			http.Error(w, "ask by the address of this host, not by the name "+host, http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// variables are those that expvar has, and the metrics, by name and labels.
func variables(metrics prometheus.Gatherer) map[string]any {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	out := map[string]any{"cmdline": os.Args, "memstats": memory, "goroutines": runtime.NumGoroutine()}
	families, err := metrics.Gather()
	if err != nil { // what could be had is there all the same
		out["error"] = err.Error()
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			switch {
			case m.Counter != nil:
				out[name] = m.GetCounter().GetValue()
			case m.Gauge != nil:
				out[name] = m.GetGauge().GetValue()
			case m.Histogram != nil:
				out[name+"_sum"], out[name+"_count"] = m.GetHistogram().GetSampleSum(), m.GetHistogram().GetSampleCount()
			}
		}
	}
	return out
}

// Serve answers what comes to l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !unhook() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("--debug %s: %w", l.Addr(), err)
}
