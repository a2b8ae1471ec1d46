package api

import (
	"context"
	"net/http"
	"path"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node/upkeep"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/garbage/check"
	"github.com/grangemesh/grange/origin/garbage/replica"
	"github.com/grangemesh/grange/origin/garbage/usage"
)

// What a node says of the origin, and is asked to do there.
type (
	Upkeep         = upkeep.View
	CollectRequest = upkeep.CollectRequest
	VerifyRequest  = upkeep.VerifyRequest
	CopyRequest    = upkeep.CopyRequest
	Garbage        = garbage.Report
	Check          = check.Report
	Replica        = replica.Report
	Usage          = usage.Report
)

// origin registers what is done to the origin as a whole. All of it is long work, with Results.
func (s *Server) origin(a huma.API) {
	up := s.cfg.Node.Upkeep
	route(a, "GET /api/origin", "how it stands with the collections of garbage and the checks of the origin", func(context.Context, *struct{}) (*Answer[Upkeep], error) {
		return answer(up.View(), nil)
	})
	operate(a, "POST /api/origin/gc", "collect garbage", func(_ context.Context, in CollectRequest) (Operation, error) { return up.Collect(in) })
	operate(a, "POST /api/origin/verify", "check what the records of the origin name; it fails where it finds damage", func(_ context.Context, in VerifyRequest) (Operation, error) { return up.Verify(in) })
	operate(a, "POST /api/origin/copy", "copy the origin to another store; it fails where not all could be copied", up.Copy)
	operate(a, "POST /api/origin/usage", "count who needs what of the origin", func(_ context.Context, _ struct{}) (Operation, error) { return up.Usage() })
}

// operate registers a route that begins long work.
func operate[B any](a huma.API, pattern, summary string, begin func(context.Context, B) (Operation, error)) {
	route(a, pattern, summary, func(ctx context.Context, in *struct{ Body B }) (*Made[Operation], error) {
		return accepted(begin(ctx, in.Body))
	}, http.StatusAccepted)
}

// reportName is what the document calls a type of the packages of origin/garbage, which call theirs alike; "" for others.
func reportName(t reflect.Type) string {
	if !strings.Contains(t.PkgPath(), "/origin/garbage") {
		return ""
	}
	from := path.Base(t.PkgPath())
	return strings.ToUpper(from[:1]) + from[1:] + t.Name()
}

// Results are what operations report, by their kind.
type Results struct {
	Garbage *Garbage `json:"gc,omitempty"`
	Check   *Check   `json:"verify,omitempty"`
	Replica *Replica `json:"copy,omitempty"`
	Usage   *Usage   `json:"du,omitempty"`
}

// describeResults says so in the document.
func describeResults(schemas huma.Registry) {
	op := schemas.SchemaFromRef(schemas.Schema(reflect.TypeFor[Operation](), true, "").Ref)
	op.Properties["result"] = schemas.Schema(reflect.TypeFor[Results](), true, "")
}
