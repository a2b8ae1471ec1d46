package api

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/instance"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/origin/content"
)

const instancesPath = "/api/instances"

// instances registers the hub: what takes long is 202 with the instance and the operation that is at it, and what is so
// already 200.
func (s *Server) instances(a huma.API) {
	hub := s.cfg.Node.Instances
	if hub == nil {
		a = refusing(a, node.ErrNoVolumes)
	}
	route(a, "GET "+instancesPath, "the instances of this node, or of the mesh", func(ctx context.Context, in *struct {
		Asked
		All bool `query:"all" doc:"those of the whole mesh, each with the node that has it"`
	}) (*Listed[Instance], error) {
		all, everywhere := hub.List, ""
		if in.All {
			all, everywhere = func() []Instance { return hub.Everywhere(ctx) }, "true"
		}
		page, err := part(in.Page, all(), func(i Instance) string { return i.Name }, cmp.Compare[string])
		page.link = also(page.link, "all", everywhere)
		return listed(in.IfNoneMatch, page, err)
	})
	named(a, "GET "+instancesPath+"/{name}", "one instance", hub.Get)
	route(a, "PUT "+instancesPath+"/{name}", "provision an instance; without a body as it was before", func(ctx context.Context, in *struct {
		Named
		Body *Provision `required:"false"`
	}) (*Made[Instance], error) {
		return done(ctx, hub, in.Name, state.Provision, in.Body)
	}, http.StatusAccepted, http.StatusOK)
	for ev, summary := range map[state.Event]string{
		state.Hibernate: "stop an instance's workload, and keep what it has here", state.Wake: "start it again",
		state.Deprovision: "put away what an instance has, and remove it from this node; absent is success", state.Obliterate: "delete all that there is of an instance, here and at the origin; absent is success",
	} {
		route(a, "POST "+instancesPath+"/{name}/"+string(ev), summary, func(ctx context.Context, in *Named) (*Made[Instance], error) {
			return done(ctx, hub, in.Name, ev, nil)
		}, http.StatusAccepted, http.StatusOK)
	}
	s.logs(a, hub)
	s.lower(a, hub)
	s.proxy(a, hub)
}

// blobType is of bytes that are the caller's to understand.
const blobType = "application/octet-stream"

// lower registers what an instance's data began as, for the process that shows them before they are here.
func (s *Server) lower(a huma.API, hub *instance.Hub) {
	op := described("GET "+instancesPath+"/{name}/lower", "bytes of what a lazy instance's data began as")
	op.Responses["200"] = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{blobType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}}
	huma.Register(a, op, func(ctx context.Context, in *struct {
		Named
		Chunk  int64 `query:"chunk" minimum:"-1" default:"-1" doc:"of that chunk alone; -1: of all its files and folders"`
		Offset int64 `query:"offset" minimum:"0"`
		Length int   `query:"length" minimum:"1" maximum:"1048576"`
	}) (*huma.StreamResponse, error) {
		p := make([]byte, in.Length)
		lent, err := hub.Lower(in.Name)
		switch {
		case err != nil:
		case in.Chunk < 0:
			err = lent.ReadStream(ctx, p, in.Offset)
		default:
			err = lent.ReadChunk(ctx, uint64(in.Chunk), int(in.Offset), p)
		}
		if err != nil {
			return nil, problem(err)
		}
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", blobType)
			_, _ = ctx.BodyWriter().Write(p)
		}}, nil
	})
}

// done has something done about an instance.
func done(ctx context.Context, hub *instance.Hub, name string, ev state.Event, req *Provision) (*Made[Instance], error) {
	if req == nil {
		req = &Provision{}
	}
	v, op, err := hub.Do(ctx, name, ev, *req)
	switch {
	case err != nil:
		return nil, err
	case v.Operation == "" || op.ID == "":
		return &Made[Instance]{http.StatusOK, "", v}, nil
	}
	return made(http.StatusAccepted, operationsPath+"/", op.ID, v), nil
}

// logs registers what a workload has said, as it has said it.
func (s *Server) logs(a huma.API, hub *instance.Hub) {
	op := described("GET "+instancesPath+"/{name}/logs", "what an instance's workload says")
	op.Responses["200"] = asText()
	huma.Register(a, op, func(ctx context.Context, in *struct {
		Named
		Last   int64 `query:"last" minimum:"0" doc:"the last bytes alone; 0: all of the log"`
		Follow bool  `query:"follow" doc:"and what it says from now on, until the client has enough"`
	}) (*huma.StreamResponse, error) {
		if err := hub.Logs(ctx, in.Name, 1, false, io.Discard); err != nil { // which an answer that has begun can't say
			return nil, problem(err)
		}
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", textType)
			_ = hub.Logs(ctx.Context(), in.Name, in.Last, in.Follow, flushing{ctx.BodyWriter()})
		}}, nil
	})
}

// flushing has each write sent at once.
type flushing struct{ io.Writer }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if w, ok := f.Writer.(http.ResponseWriter); ok && err == nil {
		err = http.NewResponseController(w).Flush()
	}
	return n, err
}

const (
	// proxyTimeout bounds how long an instance may take to begin an answer.
	proxyTimeout = time.Minute
	// proxyIdle is how long a connection to an instance is kept that nobody uses: it looks like one who does.
	proxyIdle = 5 * time.Second
	// pagesPolicy has a browser take an instance's pages for those of an origin of their own: they are anybody's
	// work, and come from the same address as the dashboard, whose rights they would have else.
	pagesPolicy = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
)

// isProxied tells the requests that an instance answers: the node does not read their bodies, which may be of any length.
func isProxied(path string) bool {
	rest, ok := strings.CutPrefix(path, instancesPath+"/")
	_, rest, _ = strings.Cut(rest, "/")
	return ok && strings.HasPrefix(rest, "proxy/")
}

func (s *Server) proxy(a huma.API, hub *instance.Hub) {
	prefix := instancesPath + "/{name}/proxy/"
	op := described("GET "+prefix+"{path}", "an instance's own pages; all methods are passed on")
	op.Responses["200"] = asText()
	for _, name := range []string{"name", "path"} {
		op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
	}
	a.OpenAPI().AddOperation(&op)
	portOf := func(string) (int, error) { return 0, node.ErrNoVolumes }
	if hub != nil {
		portOf = hub.Port
	}
	s.mux.Handle(prefix+"{path...}", s.pages(portOf))
}

// pages passes requests on to an instance's own pages; the workload is not shown who has asked for them.
func (s *Server) pages(portOf func(name string) (int, error)) http.HandlerFunc {
	transport := &http.Transport{ResponseHeaderTimeout: proxyTimeout, IdleConnTimeout: proxyIdle}
	said := slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug) // an answer that ends in its middle is the workload's matter
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		port, err := portOf(name)
		if err != nil {
			writeProblem(w, statusOf(err), content.Line(err))
			return
		}
		_, escaped, _ := strings.Cut(r.URL.EscapedPath(), "/proxy/")
		to := url.URL{Scheme: "http", Host: "127.0.0.1:" + strconv.Itoa(port)}
		(&httputil.ReverseProxy{Transport: transport, ErrorLog: said, Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Path, p.Out.URL.RawPath = "/"+r.PathValue("path"), "/"+escaped
			p.SetURL(&to)
			p.Out.Header.Del("Authorization")
			p.SetXForwarded()
		}, ModifyResponse: func(r *http.Response) error {
			r.Header.Add("Content-Security-Policy", pagesPolicy)                         // beside its own: all of them count
			for _, name := range []string{"Clear-Site-Data", "Service-Worker-Allowed"} { // which are of the whole address
				r.Header.Del(name)
			}
			return nil
		}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			writeProblem(w, http.StatusBadGateway, content.Line(fmt.Errorf("instance %q does not answer at its port: %w; `grange instance logs %s` has what it says", name, err, name)))
		}}).ServeHTTP(w, r)
	}
}
