package api

import (
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

const textType = "text/plain; charset=utf-8"

// asText is the answer of routes that answer with text.
var asText = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}}

// humaConfig says how the document begins, and how errors of huma's own become problems
// like ours.
func humaConfig(version string) huma.Config {
	hc := huma.DefaultConfig("grange", version)
	hc.Info.Description = "One member of a grange mesh: images and volumes by name."
	hc.Info.License = &huma.License{Name: "Apache 2.0", URL: "https://www.apache.org/licenses/LICENSE-2.0"}
	hc.Servers = []*huma.Server{{URL: "/"}}
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
		Type: "http", Scheme: "bearer", Description: "what the file " + TokenName + " in the node's data folder holds; the socket " + SocketName + " there asks for none",
	}}
	hc.DocsPath, hc.SchemasPath = "", ""
	hc.CreateHooks = nil // no $schema links in answers
	hc.Transformers = []huma.Transformer{func(_ huma.Context, _ string, v any) (any, error) {
		if m, ok := v.(*huma.ErrorModel); ok {
			return &Problem{*m, codeOf(m.Status, nil)}, nil
		}
		return v, nil
	}}
	return hc
}

// described begins the description of an operation.
func described(method, path, summary string) huma.Operation {
	op := huma.Operation{
		Method: method, Path: path, Summary: summary, OperationID: huma.GenerateOperationID(method, path, (*struct{})(nil)),
		MaxBodyBytes: bodyMax, BodyReadTimeout: -1, Responses: map[string]*huma.Response{},
	}
	if !isOpen(method, path) {
		op.Security = []map[string][]string{{"token": {}}}
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
	delete(schemas.Map(), "ErrorModel") // which a Problem is and more
	for _, s := range schemas.Map() {
		neverNull(s)
	}
	for _, path := range doc.Paths {
		for _, op := range []*huma.Operation{path.Get, path.Put, path.Post, path.Delete} {
			if op == nil {
				continue
			}
			op.Responses["default"] = problem
			for _, r := range op.Responses {
				for _, media := range r.Content {
					neverNull(media.Schema)
				}
			}
		}
	}
}

// neverNull says of the arrays in a schema that they are never null.
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
