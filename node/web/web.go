// Package web has the dashboard: a page and what it is made of, as files that are embedded, and how they are sent. It asks the
// node nothing: the page reads the API as any client does, with the token that its user gives it.
package web

import (
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// Prefix is where the files are that the page is made of; the page itself is at "/".
const Prefix = "/web/"

const page = "index.html"

// files are the dashboard, by go:embed.
//
//go:embed index.html *.css *.js *.svg
var files embed.FS

// policy lets the page load what is here and nothing else, and run no script but ours: names are of anybody's making. Nobody
// may show it in a frame, where clicks could be led astray.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// Mount has handle, which takes patterns as ServeMux does, called with each file.
func Mount(handle func(pattern string, h http.Handler)) {
	names, err := fs.Glob(files, "*")
	if err != nil {
		panic(err) // of the pattern, which is right
	}
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			panic(err) // they are in the program
		}
		at := Prefix + name
		if name == page {
			at = "/{$}"
		}
		handle("GET "+at, file(name, b))
	}
}

// file sends one. A browser asks each time whether it has the newest, as another version of the node has others.
func file(name string, b []byte) http.Handler {
	kind := mime.TypeByExtension(path.Ext(name))
	if path.Ext(name) == ".js" { // which some hosts have another name for
		kind = "text/javascript; charset=utf-8"
	}
	sum := sha256.Sum256(b)
	tag := fmt.Sprintf(`W/"%x"`, sum[:12])
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(b) // who has gone away needs no answer
	})
}
