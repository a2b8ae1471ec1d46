// Package api is the node's HTTP interface: the routes of the contract, their
// OpenAPI description generated from the code, and the listeners they stand
// behind. It decides who may ask; what is done about it is package node's.
package api

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/spans"
	"github.com/grangemesh/grange/node/web"
)

// Config says what to serve and where.
type Config struct {
	Node *node.Node
	// Dir is the data folder, which holds the socket, the token and the TLS
	// certificate.
	Dir string
	// Address is HOST:PORT to listen on beside the socket; "" for none. An
	// address that is not loopback is served with TLS.
	Address string
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	// Recent are the last lines of the log; nil for none.
	Recent func() []byte
	// Spans are told of the operator's requests; nil is not.
	Spans *spans.Spans
	Log   *slog.Logger
}

// Server is the HTTP interface. Use: New, Listen, Run.
type Server struct {
	cfg           Config
	limits        limits
	strangers     *semaphore.Weighted
	strangersRate *rate.Limiter
	mux           *http.ServeMux
	token         string
	history       *history
	stopping      chan struct{} // closed when Run is to end: what goes on for ever ends
	socket        net.Listener
	tcp           net.Listener
	oci           net.Listener // of the door for container runtimes, nil without
}

// goroutinesMax bounds what is said of goroutines, in bytes: of ten thousand and more.
const goroutinesMax = 8 << 20

// bodyMax bounds a request's JSON body: none holds more than some names.
const bodyMax = 64 << 10

// New builds the routes.
func New(cfg Config) *Server {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	s := newServer(cfg, http.NewServeMux(), defaultLimits())
	s.history = &history{moved: cfg.Node.Moved}
	a := humago.New(s.mux, humaConfig(cfg.Node.Version()))
	s.images(a)
	s.volumes(a)
	s.instances(a)
	s.operations(a)
	s.origin(a)
	s.members(a)
	s.names(a)
	s.health(a)
	s.alone(a)
	route(a, "GET /api/history", "what this node has read in the last hour, and where it came from", func(context.Context, *struct{}) (*Answer[History], error) {
		return answer(s.history.view(), nil)
	})
	web.Mount(s.mux.Handle)
	finish(a.OpenAPI())
	return s
}

func newServer(cfg Config, mux *http.ServeMux, l limits) *Server {
	return &Server{
		cfg: cfg, stopping: make(chan struct{}), limits: l, strangers: semaphore.NewWeighted(l.strangers), strangersRate: rate.NewLimiter(l.strangersRate, int(l.strangersRate)), mux: mux,
	}
}

// route registers one operation, of a pattern as ServeMux takes them: its error becomes a
// problem document. It answers with the first of the statuses, or what huma holds for
// usual, and sometimes with the others. The body was read in time before it comes here.
func route[I, O any](a huma.API, pattern, summary string, fn func(context.Context, *I) (*O, error), statuses ...int) {
	op := described(pattern, summary)
	op.OperationID = operationID(pattern, (*O)(nil))
	if len(statuses) > 0 {
		op.DefaultStatus = statuses[0]
	}
	if _, ok := reflect.TypeFor[I]().FieldByName("IfNoneMatch"); ok {
		op.Responses["304"] = &huma.Response{Description: "the client has it already"}
	}
	huma.Register(a, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, problem(err)
		}
		return out, nil
	})
	for _, also := range statuses[min(1, len(statuses)):] {
		other := *op.Responses[strconv.Itoa(op.DefaultStatus)]
		other.Description = http.StatusText(also)
		op.Responses[strconv.Itoa(also)] = &other
	}
}

// Named is the input of routes on one name.
type Named struct {
	Name string `path:"name" maxLength:"270" doc:"percent-encoded, one segment of the path"`
}

// named registers a route on one name that answers with what there is of it.
func named[T any](a huma.API, pattern, summary string, get func(context.Context, string) (T, error)) {
	route(a, pattern, summary, func(ctx context.Context, in *Named) (*Answer[T], error) { return answer(get(ctx, in.Name)) })
}

// With is that of routes which take a body too.
type With[B any] struct {
	Named
	Body B
}

// Forced is the input of routes that may break what is in use.
type Forced struct {
	Force bool `query:"force" doc:"although the volume is in use; who uses it gets errors"`
}

func (s *Server) health(a huma.API) {
	type text struct {
		Type string `header:"Content-Type"`
		Body []byte
	}
	texts := func(path, summary string, fn func(context.Context) ([]byte, error)) {
		op := described("GET "+path, summary)
		op.Responses["200"] = asText()
		huma.Register(a, op, func(ctx context.Context, _ *struct{}) (*text, error) {
			b, err := fn(ctx)
			return &text{textType, b}, err
		})
	}
	texts("/healthz", "the process answers", func(context.Context) ([]byte, error) { return []byte("ok\n"), nil })
	texts("/readyz", "the node has joined and serves; what is amiss all the same is said to who may know", func(ctx context.Context) ([]byte, error) {
		if waiting := s.cfg.Node.Waiting(); len(waiting) > 0 {
			return nil, huma.Error503ServiceUnavailable("not ready: it waits for " + strings.Join(waiting, ", "))
		}
		b := []byte("ok\n")
		if !isTrusted(ctx) { // whom it costs next to nothing
			return b, nil
		}
		for _, w := range s.cfg.Node.Warnings() {
			b = append(b, "warning: "+w.About+": "+w.Text+"\n"...)
		}
		return b, nil
	})
	texts("/api/support/log", "the last lines of the node's log, each a JSON document", func(context.Context) ([]byte, error) {
		if s.cfg.Recent == nil {
			return []byte{}, nil
		}
		return s.cfg.Recent(), nil
	})
	texts("/api/support/goroutines", "what each goroutine of the node is at, for a bug report; some MiB at most", func(context.Context) ([]byte, error) {
		b := make([]byte, goroutinesMax)
		return b[:runtime.Stack(b, true)], nil
	})
	op := described("GET /metrics", "counters and gauges, as Prometheus takes them")
	op.Responses["200"] = asText()
	a.OpenAPI().AddOperation(&op)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{}))
}
