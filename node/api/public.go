package api

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/origin/content"
)

// names registers the routes that need no token for public content: to anyone
// else what is not public is absent.
func (s *Server) names(a huma.API) {
	n := s.cfg.Node
	route(a, "GET /api/resolve/{name}", "what a name stands for", func(ctx context.Context, in *struct {
		Named
		IfNoneMatch
	}) (*Tagged[Resolved], error) {
		r, err := n.Names.Resolve(ctx, in.Name, isTrusted(ctx))
		return tagged(in.IfNoneMatch, r, err)
	})
	s.blocks(a)
	for _, path := range publicPaths() {
		s.mux.HandleFunc("OPTIONS "+path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	}
}

// publicPaths are where public content is shown to anyone, pages of other origins
// included.
func publicPaths() []string { return []string{"/api/resolve/", "/ipfs/"} }

func isPublic(path string) bool {
	return slices.ContainsFunc(publicPaths(), func(p string) bool { return strings.HasPrefix(path, p) })
}

// allowPages lets pages of any origin read an answer, as the fetch standard has it.
func allowPages(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Content-Type, If-None-Match, Range, User-Agent, X-Requested-With")
	h.Set("Access-Control-Expose-Headers", "Content-Length, Content-Range, Etag, X-Ipfs-Path, X-Ipfs-Roots")
}

const (
	blockType = "application/vnd.ipld.raw"

	// blockNameMax bounds the text of a CID: that of the longest that carries its bytes
	// in itself and is worth a name.
	blockNameMax = 256
)

// blocks registers the part of an IPFS trustless gateway that brings blocks: chunks of
// public images, the nodes of their maps, and their roots. A root and a node are
// dag-cbor, whose links name what is below; all CIDs have the raw codec.
func (s *Server) blocks(a huma.API) {
	op := described("GET /ipfs/{cid}", "one verified block of public content")
	text := &huma.Schema{Type: huma.TypeString}
	op.Parameters = []*huma.Param{
		{Name: "cid", In: "path", Required: true, Schema: text},
		{Name: "format", In: "query", Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"raw"}}, Description: "not needed with Accept: " + blockType},
		{Name: "filename", In: "query", Schema: text, Description: "what a browser is to call the block"},
	}
	op.Responses["200"] = &huma.Response{Description: "the block", Content: map[string]*huma.MediaType{blockType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}}
	op.Responses["206"] = &huma.Response{Description: "the Range of it that was asked for"}
	op.Responses["304"] = &huma.Response{Description: "the client has it already"}
	a.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc("GET /ipfs/{cid}", s.block)
}

func (s *Server) block(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("cid")
	b, err := []byte(nil), error(nil)
	switch format := r.URL.Query().Get("format"); {
	case format == "" && !accepts(r, blockType), format != "" && format != "raw":
		writeProblem(w, http.StatusNotAcceptable, "blocks are handed out raw alone: ask with `Accept: "+blockType+"`, or with ?format=raw")
		return
	case len(name) > blockNameMax:
		err = fmt.Errorf("CID of %d characters: %w: at most %d", len(name), content.ErrInvalid, blockNameMax)
	default:
		if b, err = s.blockOf(name); err == nil {
			err = s.cfg.Node.Allow(len(b))
		}
	}
	if err != nil {
		writeProblem(w, statusOf(err), content.Line(err))
		return
	}
	h := w.Header()
	h.Set("Content-Type", blockType)
	h.Set("Content-Disposition", attachment(r.URL.Query().Get("filename"), name+".bin"))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Ipfs-Path", "/ipfs/"+name)
	h.Set("X-Ipfs-Roots", name)
	h.Set("Cache-Control", "public, max-age=29030400, immutable")
	h.Set("Etag", `"`+name+`.raw"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// blockOf returns the block of a name: out of the name itself, or of what is public here.
func (s *Server) blockOf(name string) ([]byte, error) {
	b, absent := content.Inline(name)
	if !errors.Is(absent, content.ErrNotFound) {
		return b, absent
	}
	id, err := content.ParseCID(name)
	if err != nil { // a CID of another kind names nothing of ours
		return nil, absent
	}
	v, err := s.cfg.Node.Images.PublicBlock(id)
	return v.Bytes(), err
}

// accepts reports whether a client names a type that it takes.
func accepts(r *http.Request, want string) bool {
	for _, list := range r.Header.Values("Accept") {
		for t := range strings.SplitSeq(list, ",") {
			if t, _, err := mime.ParseMediaType(t); err == nil && t == want {
				return true
			}
		}
	}
	return false
}

// attachment is the Content-Disposition of a file, whatever its name has in it.
func attachment(name, usual string) string {
	ascii := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '_'
		}
		return c
	}, cmp.Or(name, usual))
	return fmt.Sprintf(`attachment; filename="%s"; filename*=UTF-8''%s`, ascii, url.PathEscape(cmp.Or(name, usual)))
}
