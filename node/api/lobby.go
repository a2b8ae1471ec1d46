package api

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
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

// Accept implements net.Listener.
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

// Close implements net.Conn.
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

// guestOf returns what withGuest has remembered, nil if it has not.
func guestOf(ctx context.Context) *guest {
	g, _ := ctx.Value(guestKey{}).(*guest)
	return g
}
