package api

import (
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
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
	}
	return huma.DefaultSchemaNamer(t, hint)
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

// described begins the description of an operation.
func described(pattern, summary string) huma.Operation {
	method, path, _ := strings.Cut(pattern, " ")
	op := huma.Operation{
		Method: method, Path: path, Summary: summary, OperationID: operationID(pattern, (*struct{})(nil)),
		MaxBodyBytes: bodyMax, BodyReadTimeout: -1, Responses: map[string]*huma.Response{},
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
