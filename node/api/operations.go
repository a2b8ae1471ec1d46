package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/grangemesh/grange/node"
)

// eventInterval is how often a running operation's progress is sent: a person
// can't follow more.
const eventInterval = 200 * time.Millisecond

// OperationID is the input of routes on one operation.
type OperationID struct {
	ID string `path:"id" maxLength:"64"`
}

func viewOperation(v node.OperationView) Operation {
	out := Operation{
		ID: v.ID, Kind: v.Kind, Target: v.Target, State: string(v.State), Done: v.Done, Total: v.Total,
		Bytes: v.Bytes, Note: v.Note, ETA: v.ETA(time.Now()).Seconds(), Started: v.Started, Ended: v.Ended, Took: v.Took().Seconds(),
	}
	if v.Err != nil {
		out.Error = v.Err.Error()
	}
	return out
}

// accepted answers 202 with the operation that was started.
func accepted(v node.OperationView, err error) (*Answer[Operation], error) {
	if err != nil {
		return nil, err
	}
	return &Answer[Operation]{http.StatusAccepted, viewOperation(v)}, nil
}

func (s *Server) operations(a huma.API) {
	ops := s.cfg.Node.Operations
	route(a, http.MethodGet, "/api/operations", "long work, newest first", func(context.Context, *struct{}) (*Answer[[]Operation], error) {
		out := []Operation{}
		for _, v := range ops.List() {
			out = append(out, viewOperation(v))
		}
		return ok(out), nil
	})
	route(a, http.MethodGet, "/api/operations/{id}", "one operation", func(_ context.Context, in *OperationID) (*Answer[Operation], error) {
		v, err := ops.Get(in.ID)
		return ok(viewOperation(v)), err
	})
	route(a, http.MethodDelete, "/api/operations/{id}", "cancel an operation", func(_ context.Context, in *OperationID) (*struct{}, error) {
		return nil, ops.Cancel(in.ID)
	})
	sse.Register(a, huma.Operation{
		OperationID: "operation-events", Method: http.MethodGet, Path: "/api/operations/{id}/events", Summary: "an operation's progress until it ends",
	}, map[string]any{"progress": Operation{}}, func(ctx context.Context, in *OperationID, send sse.Sender) {
		for {
			v, err := ops.Get(in.ID)
			if err != nil || send.Data(viewOperation(v)) != nil || v.State != node.OperationRunning {
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
