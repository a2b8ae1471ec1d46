package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/origin/content"
)

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
	return &huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: err.Error()}
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
	case errors.Is(err, errors.ErrUnsupported):
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

// writeProblem answers from outside the described routes.
func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail})
}
