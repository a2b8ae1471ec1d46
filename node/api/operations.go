package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
)

const (
	operationsPath = "/api/operations"

	// eventInterval is how often a running operation's progress is sent: a person
	// can't follow more.
	eventInterval = 200 * time.Millisecond

	// cancelPatience is how long a request to cancel waits for the operation's end,
	// which most reach at once.
	cancelPatience = 2 * time.Second
)

// OperationID is the input of routes on one operation.
type OperationID struct {
	ID string `path:"id" maxLength:"64"`
}

// accepted answers 202 with the operation that was started.
func accepted(v Operation, err error) (*Made[Operation], error) {
	return made(http.StatusAccepted, operationsPath+"/", v.ID, v), err
}

func (s *Server) operations(a huma.API) {
	ops := s.cfg.Node.Operations
	lists(a, operationsPath, "long work, newest first", func(v Operation) string { return v.ID }, func(context.Context) ([]Operation, error) {
		return ops.List(), nil
	})
	route(a, "GET "+operationsPath+"/{id}", "one operation", func(_ context.Context, in *OperationID) (*Answer[Operation], error) {
		return answer(ops.Get(in.ID))
	})
	route(a, "DELETE "+operationsPath+"/{id}", "cancel an operation; one that has ended stays as it is", func(ctx context.Context, in *OperationID) (*Answer[Operation], error) {
		ctx, cancel := context.WithTimeout(ctx, cancelPatience)
		defer cancel()
		return answer(ops.Cancel(ctx, in.ID))
	})
	for verb, pause := range map[string]bool{"pause": true, "resume": false} {
		route(a, "POST "+operationsPath+"/{id}/"+verb, verb+" an operation that brings data of files in, or puts them away", func(_ context.Context, in *OperationID) (*Answer[Operation], error) {
			return answer(ops.Pause(in.ID, pause))
		})
	}
	s.events(a)
	s.allEvents(a)
}

// aliveInterval is how often who follows all operations hears that the node is there.
const aliveInterval = 2 * time.Second

// allEvents streams what becomes of all operations: those that run when the client comes, and later ones.
func (s *Server) allEvents(a huma.API) {
	op := described("GET /api/events", "what becomes of all operations, as it does")
	op.Responses["200"] = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{}}
	defer func() {
		op.Responses["200"].Content["text/event-stream"].Schema = &huma.Schema{Type: huma.TypeString, Description: "events `operation`, whose data is an Operation, and `alive`, with the time, every two seconds"}
	}()
	sse.Register(a, op, map[string]any{"operation": Operation{}, "alive": ""}, func(ctx context.Context, _ *struct{}, send sse.Sender) {
		tick := time.NewTicker(eventInterval)
		defer tick.Stop()
		seen, first, alive := map[string]int{}, true, time.Time{}
		for {
			if time.Since(alive) > aliveInterval {
				if alive = time.Now(); send.Data(alive.UTC().Format(time.RFC3339)) != nil {
					return
				}
			}
			for _, v := range slices.Backward(s.cfg.Node.Operations.List()) {
				before := seen[v.ID]
				seen[v.ID] = v.Revision // as many as the node keeps, and those that it has forgotten since
				if before == v.Revision || first && v.State != operations.Running {
					continue
				}
				if send.Data(v) != nil {
					return
				}
			}
			first = false
			select {
			case <-tick.C:
			case <-s.stopping:
				return
			case <-ctx.Done():
				return
			}
		}
	})
}

// events streams an operation's progress. Each event's ID is the operation's revision:
// a client that comes back with that of the end is told that there is no more.
func (s *Server) events(a huma.API) {
	ops := s.cfg.Node.Operations
	type input struct {
		OperationID
		Last int `header:"Last-Event-ID" doc:"of the last event that the client has"`
	}
	op := described("GET "+operationsPath+"/{id}/events", "an operation's progress until it ends")
	op.Responses["204"] = &huma.Response{Description: "the operation has ended, and Last-Event-ID is that of its last event"}
	op.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		v, err := ops.Get(ctx.Param("id"))
		last, _ := strconv.Atoi(ctx.Header("Last-Event-ID"))
		switch {
		case err != nil:
			huma.WriteErr(a, ctx, statusOf(err), content.Line(err))
		case v.State != operations.Running && last >= v.Revision:
			ctx.SetStatus(http.StatusNoContent)
		default:
			next(ctx)
		}
	}}
	op.Responses["200"] = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{}}
	defer func() {
		op.Responses["200"].Content["text/event-stream"].Schema = &huma.Schema{Type: huma.TypeString, Description: "events `progress`, whose data is an Operation"}
	}()
	sse.Register(a, op, map[string]any{"progress": Operation{}}, func(ctx context.Context, in *input, send sse.Sender) {
		for {
			v, err := ops.Get(in.ID)
			if err != nil || send(sse.Message{ID: v.Revision, Data: v.Brief()}) != nil || v.State != operations.Running {
				return
			}
			wait, cancel := context.WithTimeout(ctx, eventInterval)
			_, err = ops.Wait(wait, in.ID)
			cancel()
			if err != nil && ctx.Err() != nil {
				return
			}
		}
	})
}
