package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/time/rate"
)

// limits bound what clients may take. Tests have shorter ones.
type limits struct {
	// header is how long a client may take to send its headers, body its body, which
	// is small.
	header, body time.Duration
	// refused is how long what comes after a refused request's headers is read, so
	// that the client sees the refusal and no reset.
	refused time.Duration
	// write is how long a client may take to read one piece of an answer. Answers
	// that go on, such as an operation's events, have as long for each.
	write time.Duration
	// idle closes kept-alive connections that nobody uses.
	idle time.Duration
	// tcp and socket are how many connections there are at once, client how many of
	// them to the address have come from one host.
	tcp, socket, client int
	// streams are the requests at once of one HTTP/2 connection.
	streams int
	// strangers are the requests at once of all who show no token, and strangersRate
	// those a second; strangerTime is how long one of them may take.
	strangers     int64
	strangersRate rate.Limit
	strangerTime  time.Duration
}

func defaultLimits() limits {
	return limits{
		header: 10 * time.Second, body: 10 * time.Second, refused: time.Second, write: 30 * time.Second, idle: 2 * time.Minute,
		// Half of the 1,024 files that the leanest systems give a process stay for
		// members, disks and the cache, whoever comes to the API.
		tcp: 384, socket: 128,
		// A browser opens six, a pool of a proxy some dozens.
		client: 64, streams: 32,
		// What these cost: at most a few blocks of memory each, and a look at the
		// origin for some. An operator's own requests are never counted.
		strangers: 32, strangersRate: 2000, strangerTime: 10 * time.Second,
	}
}

// serveStranger serves a request without token, if what all of them may spend together
// allows: they never take the place of the operator.
func (s *Server) serveStranger(next http.Handler, w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		s.refuse(w, r, http.StatusBadRequest, "this route takes no body")
		return
	}
	if isFree(r.URL.Path) {
		next.ServeHTTP(w, r)
		return
	}
	if !s.strangersRate.Allow() || !s.strangers.TryAcquire(1) {
		w.Header().Set("Retry-After", strconv.Itoa(1))
		s.refuse(w, r, http.StatusTooManyRequests, "too many requests without a token; try again in a second, or show the token")
		return
	}
	defer s.strangers.Release(1)
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.strangerTime)
	defer cancel()
	next.ServeHTTP(w, r.WithContext(ctx))
}

// refuse answers without having read the body, and does not wait for it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, detail string) {
	if r.ContentLength != 0 {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.limits.refused))
		w.Header().Set("Connection", "close")
	}
	writeProblem(w, status, detail)
}

// readBody reads the whole body before the request is served, within its time, so that
// long work has no deadline from it. It answers when there is something wrong.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) (ok bool) {
	if r.ContentLength == 0 {
		return true
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(s.limits.body))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	var tooLong *http.MaxBytesError
	switch {
	case err == nil:
		control.SetReadDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(b))
		return true
	case errors.As(err, &tooLong):
		s.refuse(w, r, http.StatusRequestEntityTooLarge, "the body is longer than "+strconv.Itoa(bodyMax)+" bytes")
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.refuse(w, r, http.StatusRequestTimeout, "the body did not come within "+s.limits.body.String())
	default:
		s.refuse(w, r, http.StatusBadRequest, "the body can't be read: "+err.Error())
	}
	return false
}

// paced is a ResponseWriter whose client has some time to read each piece.
type paced struct {
	http.ResponseWriter
	within time.Duration
}

// extend gives the client its time anew.
func (p paced) extend() {
	http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now().Add(p.within))
}

// Write implements http.ResponseWriter.
func (p paced) Write(b []byte) (int, error) {
	p.extend()
	return p.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what it looks for.
func (p paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }
