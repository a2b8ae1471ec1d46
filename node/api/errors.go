package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/content"
)

// Problem is an RFC 9457 problem document, with a code for programs.
type Problem struct {
	huma.ErrorModel
	Code     string    `json:"code" doc:"what kind of problem it is: of a conflict which, else the status in words" example:"in_use"`
	Holder   string    `json:"holder,omitempty" doc:"of a volume that another has: which node that is"`
	Policy   string    `json:"policy,omitempty" doc:"and what a flush of it means there"`
	FoldedAt time.Time `json:"folded_at,omitzero" doc:"and when the bucket last got all that was written; absent when it never has"`
}

// codeOf is the code of a problem.
func codeOf(status int, err error) string {
	var conflict content.Conflict
	switch {
	case errors.As(err, &conflict):
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
	var already huma.StatusError
	if errors.As(err, &already) {
		return already
	}
	status := statusOf(err)
	p := newProblem(status, content.Line(err), codeOf(status, err))
	var held *volumes.HeldError
	if errors.As(err, &held) {
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
	case errors.Is(err, content.ErrNoSpace):
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

// WriteHeader implements http.ResponseWriter.
func (d *discard) WriteHeader(status int) { d.status = status }

// Write implements http.ResponseWriter.
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
