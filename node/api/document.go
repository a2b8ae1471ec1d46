package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	instances "github.com/grangemesh/grange/node/instance/terms"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const textType = "text/plain; charset=utf-8"

// asText is the answer of routes that answer with text.
func asText() *huma.Response {
	return &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}}
}

// schemaName calls types in the document as they are called here.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[Operation]():
		return "Operation"
	case reflect.TypeFor[Volume]():
		return "Volume"
	case reflect.TypeFor[VolumeSpec]():
		return "VolumeSpec"
	case reflect.TypeFor[Snapshot]():
		return "Snapshot"
	case reflect.TypeFor[Instance]():
		return "Instance"
	case reflect.TypeFor[Provision]():
		return "Provision"
	case reflect.TypeFor[instances.Spec]():
		return "InstanceSpec"
	case reflect.TypeFor[ProfileSpec]():
		return "ProfileSpec"
	case reflect.TypeFor[Upkeep]():
		return "Upkeep"
	}
	return cmp.Or(reportName(t), huma.DefaultSchemaNamer(t, hint))
}

// humaConfig says how the document begins, and how errors of huma's own become problems
// like ours.
func humaConfig(version string) huma.Config {
	hc := huma.DefaultConfig("grange", version)
	hc.Info.Description = "One member of a grange mesh: images and volumes by name."
	hc.Info.License = &huma.License{Name: "Apache 2.0", URL: "https://www.apache.org/licenses/LICENSE-2.0"}
	hc.Servers = []*huma.Server{{URL: "/"}}
	hc.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
		Type: "http", Scheme: "bearer", Description: "what the file " + TokenName + " in the node's data folder holds; the socket " + SocketName + " there asks for none",
	}}
	hc.DocsPath, hc.SchemasPath = "", ""
	hc.CreateHooks = nil // no $schema links in answers
	hc.Transformers = []huma.Transformer{func(_ huma.Context, _ string, v any) (any, error) {
		if m, ok := v.(*huma.ErrorModel); ok {
			return &Problem{ErrorModel: *m, Code: codeOf(m.Status, nil)}, nil
		}
		return v, nil
	}}
	return hc
}

// operationID is what generated clients call an operation by.
func operationID(pattern string, answer any) string {
	method, path, _ := strings.Cut(pattern, " ")
	return huma.GenerateOperationID(method, strings.TrimPrefix(path, "/api"), answer)
}

// tagOf is what the operations of a path are shown under.
func tagOf(path string) string {
	if kind, ok := strings.CutPrefix(path, "/api/"); ok {
		kind, _, _ = strings.Cut(kind, "/")
		return kind
	}
	return "node"
}

func described(pattern, summary string) huma.Operation {
	method, path, _ := strings.Cut(pattern, " ")
	op := huma.Operation{
		Method: method, Path: path, Summary: summary, OperationID: operationID(pattern, (*struct{})(nil)),
		Tags: []string{tagOf(path)}, MaxBodyBytes: bodyMax, BodyReadTimeout: -1, Responses: map[string]*huma.Response{},
	}
	if isOpen(method, path) {
		op.Security = append(op.Security, map[string][]string{})
	}
	if !isFree(path) {
		op.Security = append(op.Security, map[string][]string{"token": {}})
	}
	return op
}

// finish adds what huma does not know: that no array is ever null, and that every
// operation may answer with a problem.
func finish(doc *huma.OpenAPI) {
	schemas := doc.Components.Schemas
	problem := &huma.Response{Description: "a problem", Content: map[string]*huma.MediaType{
		"application/problem+json": {Schema: schemas.Schema(reflect.TypeFor[Problem](), true, "")},
	}}
	describeResults(schemas)
	delete(schemas.Map(), "ErrorModel") // which a Problem is and more
	for _, s := range schemas.Map() {
		neverNull(s)
	}
	for _, path := range doc.Paths {
		for _, op := range []*huma.Operation{path.Get, path.Put, path.Post, path.Delete} {
			if op == nil {
				continue
			}
			op.Responses["4XX"], op.Responses["5XX"] = problem, problem
			delete(op.Responses, "default") // of huma, with its own problem
			for _, r := range op.Responses {
				for _, media := range r.Content {
					neverNull(media.Schema)
				}
			}
		}
	}
}

func neverNull(s *huma.Schema) {
	if s == nil {
		return
	}
	s.Nullable = s.Nullable && s.Type != huma.TypeArray
	neverNull(s.Items)
	for _, p := range s.Properties {
		neverNull(p)
	}
}

// Problem is an RFC 9457 problem document, with a code for programs.
type Problem struct {
	huma.ErrorModel
	Code     string    `json:"code" doc:"what kind of problem it is: of a conflict which, else the status in words" example:"in_use"`
	Holder   string    `json:"holder,omitempty" doc:"of a volume that another has: which node that is"`
	Policy   string    `json:"policy,omitempty" doc:"and what a flush of it means there"`
	FoldedAt time.Time `json:"folded_at,omitzero" doc:"and when the bucket last got all that was written; absent when it never has"`
}

func codeOf(status int, err error) string {
	switch conflict, ok := errors.AsType[content.Conflict](err); {
	case ok:
		return string(conflict)
	case errors.Is(err, content.ErrExists):
		return "exists"
	case errors.Is(err, content.ErrFenced):
		return "fenced"
	}
	return strings.ToLower(strings.ReplaceAll(http.StatusText(status), " ", "_"))
}

// problem turns an error into an RFC 9457 problem document. The error's own
// text says what happened, to which name and what to do; the status comes from
// its category.
func problem(err error) error {
	if err == nil {
		return nil
	}
	if already, ok := errors.AsType[huma.StatusError](err); ok {
		return already
	}
	status := statusOf(err)
	p := newProblem(status, content.Line(err), codeOf(status, err))
	if held, ok := errors.AsType[*terms.HeldError](err); ok {
		p.Holder, p.Policy, p.FoldedAt = held.Holder, held.Policy, held.FoldedAt
	}
	return p
}

func newProblem(status int, detail, code string) *Problem {
	return &Problem{ErrorModel: huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail}, Code: code}
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, content.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, content.ErrForbidden), errors.Is(err, content.ErrReadOnly):
		return http.StatusForbidden
	case errors.Is(err, content.ErrExists), errors.Is(err, content.ErrConflict), errors.Is(err, content.ErrFenced):
		return http.StatusConflict
	case errors.Is(err, content.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, content.ErrNoSpace), durable.IsFull(err): // which files say as they are written
		return http.StatusInsufficientStorage
	case errors.Is(err, content.ErrUnavailable), errors.Is(err, content.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	case errors.Is(err, errors.ErrUnsupported): // by this version, or on this host
		return http.StatusUnprocessableEntity
	}
	return http.StatusInternalServerError
}

// writeProblem answers from outside the described routes.
func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(newProblem(status, detail, codeOf(status, nil)))
}

// unrouted has ServeMux answer requests that no route takes, by a problem.
func unrouted(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		d := &discard{ResponseWriter: w}
		h.ServeHTTP(d, r)
		detail := r.URL.Path + " is not here; /openapi.json has what is"
		if d.status == http.StatusMethodNotAllowed {
			detail = r.URL.Path + " takes " + w.Header().Get("Allow") + ", not " + r.Method
		}
		writeProblem(w, d.status, detail)
	})
}

// discard keeps of an answer its headers and status.
type discard struct {
	http.ResponseWriter
	status int
}

func (d *discard) WriteHeader(status int) { d.status = status }

func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
