package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// complainEvery is how often a failed accept is told of: for want of files it fails as
// often as it is tried.
const complainEvery = time.Minute

// lobby is a listener that bounds how many are connected, in all and from one host.
// Who comes is let in: one makes room for it who has the most connections and waits the
// longest without being served, so that those who hang take only each other's place.
type lobby struct {
	net.Listener
	total, each int
	log         *slog.Logger
	complaint   rate.Sometimes

	mu     sync.Mutex // guards what follows, and the guests' fields
	guests map[*guest]struct{}
}

func newLobby(l net.Listener, total, each int, log *slog.Logger) *lobby {
	return &lobby{Listener: l, total: total, each: each, log: log, complaint: rate.Sometimes{Interval: complainEvery}, guests: map[*guest]struct{}{}}
}

// guest is one connection.
type guest struct {
	net.Conn
	lobby *lobby
	host  string
	since time.Time // when it came or was last served
	busy  int       // requests of the operator's that are being served
}

func (l *lobby) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				l.complaint.Do(func() { l.log.Warn("API: nobody can connect now", "address", l.Addr().String(), "err", err) })
			}
			return nil, err
		}
		if g := l.admit(conn); g != nil {
			return g, nil
		}
		conn.Close()
	}
}

// admit takes a connection in, and shows another out if need be; nil when all that
// could make room are busy.
func (l *lobby) admit(conn net.Conn) *guest {
	g := &guest{Conn: conn, lobby: l, host: hostOf(conn.RemoteAddr()), since: time.Now()}
	l.mu.Lock()
	count := map[string]int{}
	most := ""
	for other := range l.guests {
		if count[other.host]++; count[other.host] > count[most] {
			most = other.host
		}
	}
	var out *guest
	full := true
	switch {
	case count[g.host] >= l.each:
		out = l.longest(g.host)
	case len(l.guests) >= l.total:
		out = l.longest(most)
	default:
		full = false
	}
	if out != nil {
		delete(l.guests, out)
	}
	if full && out == nil {
		l.mu.Unlock()
		return nil
	}
	l.guests[g] = struct{}{}
	l.mu.Unlock()
	if out != nil {
		out.Conn.Close()
	}
	return g
}

// longest is the guest from a host that has waited the longest. Called with mu.
func (l *lobby) longest(host string) (out *guest) {
	for g := range l.guests {
		if g.host == host && g.busy == 0 && (out == nil || g.since.Before(out.since)) {
			out = g
		}
	}
	return out
}

func (g *guest) Close() error {
	g.lobby.mu.Lock()
	delete(g.lobby.guests, g)
	g.lobby.mu.Unlock()
	return g.Conn.Close()
}

// serve notes that a request of the guest is served until done is called; while it is
// the operator's, it makes room for nobody.
func (g *guest) serve(operator bool) (done func()) {
	n := 0
	if operator {
		n = 1
	}
	note := func(n int) {
		g.lobby.mu.Lock()
		defer g.lobby.mu.Unlock()
		g.busy += n
		g.since = time.Now()
	}
	note(n)
	return func() { note(-n) }
}

// hostOf is whom a connection counts for: an address, of IPv6 the network that one
// host has for itself, and all users of the socket as one.
func hostOf(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return "socket"
	}
	ip := t.AddrPort().Addr().Unmap()
	if ip.Is6() && !ip.IsLinkLocalUnicast() {
		return netip.PrefixFrom(ip.WithZone(""), 64).Masked().String()
	}
	return ip.String()
}

type guestKey struct{}

// withGuest remembers a connection in the context of its requests.
func withGuest(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, guestKey{}, c)
}

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

func (p paced) Write(b []byte) (int, error) {
	p.extend()
	return p.ResponseWriter.Write(b)
}

// Flush sends what there is, for who wraps this one and looks for no more than a Flusher.
func (p paced) Flush() {
	_ = http.NewResponseController(p.ResponseWriter).Flush() // a client that has gone away is found out by the next write
}

// Unwrap lets http.ResponseController find what it looks for.
func (p paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }
