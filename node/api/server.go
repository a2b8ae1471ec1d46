package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/grangemesh/grange/node"
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
	// Flusher says why block devices may hang when memory is short; nil if they don't.
	Flusher error
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	Log     *slog.Logger
}

// Server is the HTTP interface. Use: New, Listen, Run.
type Server struct {
	cfg       Config
	limits    limits
	strangers *budget
	mux       *http.ServeMux
	token     string
	socket    net.Listener
	tcp       net.Listener
}

// bodyMax bounds a request's JSON body: none holds more than some names.
const bodyMax = 64 << 10

// New builds the routes.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := newServer(cfg, http.NewServeMux(), defaultLimits())
	hc := huma.DefaultConfig("grange", cfg.Node.Version())
	hc.Info.Description = "One member of a grange mesh: images and volumes by name."
	hc.DocsPath, hc.SchemasPath = "", ""
	hc.CreateHooks = nil // no $schema links in answers
	a := humago.New(s.mux, hc)
	s.images(a)
	s.volumes(a)
	s.operations(a)
	s.members(a)
	s.names(a)
	s.health(a)
	return s
}

func newServer(cfg Config, mux *http.ServeMux, l limits) *Server {
	return &Server{cfg: cfg, limits: l, strangers: newBudget(l), mux: mux}
}

// route registers one operation: its error becomes a problem document.
// The body was read in time before it comes here.
func route[I, O any](a huma.API, method, path, summary string, fn func(context.Context, *I) (*O, error)) {
	op := huma.Operation{Method: method, Path: path, Summary: summary, OperationID: huma.GenerateOperationID(method, path, (*O)(nil)), MaxBodyBytes: bodyMax, BodyReadTimeout: -1}
	huma.Register(a, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, problem(err)
		}
		return out, nil
	})
}

// Named is the input of routes on one name.
type Named struct {
	Name string `path:"name" maxLength:"140"`
}

// Forced is the input of routes that may break what is in use.
type Forced struct {
	Force bool `query:"force" doc:"although the volume is in use; who uses it gets errors"`
}

// Answer is a JSON body with a status.
type Answer[T any] struct {
	Status int
	Body   T
}

func ok[T any](v T) *Answer[T] { return &Answer[T]{http.StatusOK, v} }

func (s *Server) health(a huma.API) {
	type text struct{ Body []byte }
	route(a, http.MethodGet, "/healthz", "the process answers", func(context.Context, *struct{}) (*text, error) {
		return &text{[]byte("ok\n")}, nil
	})
	route(a, http.MethodGet, "/readyz", "the node has joined and serves", func(ctx context.Context, _ *struct{}) (*text, error) {
		if waiting := s.cfg.Node.Waiting(); len(waiting) > 0 {
			b, err := json.Marshal(waiting)
			if err != nil {
				return nil, err
			}
			return nil, huma.Error503ServiceUnavailable("not ready: " + string(b))
		}
		return &text{[]byte("ok\n")}, nil
	})
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{}))
}
