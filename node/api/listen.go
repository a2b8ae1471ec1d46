package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/oci"
	"github.com/grangemesh/grange/node/web"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// SocketName and TokenName are the files in the data folder through which
	// the command line finds the node.
	SocketName = "api.sock"
	TokenName  = "api.token"

	// tokenMin is the least length of a token: no guess finds it.
	tokenMin = 32

	// shutdownTimeout is how long requests in hand may take to end at a stop.
	shutdownTimeout = 5 * time.Second
)

// trusted marks requests whose sender may do everything: it came over the
// socket or showed the token.
type trusted struct{}

// local marks requests that came over the socket.
type local struct{}

func isTrusted(ctx context.Context) bool {
	ok, _ := ctx.Value(trusted{}).(bool)
	return ok
}

// Run serves the socket, and HOST:PORT when one is configured, until ctx is
// done; then it lets requests in hand end.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { close(s.stopping) })
	routes := compressed(s.cfg.Spans.Serve(unrouted(s.mux), s.cfg.Node.Operations, s.traced))
	group.Go(func() error { return s.serve(ctx, s.socket, s.guard(routes, true)) })
	if s.oci != nil {
		group.Go(func() error { return s.serve(ctx, s.oci, s.paced(s.shown(s.cfg.Node.Door))) })
	}
	if s.tcp != nil {
		group.Go(func() error { return s.serve(ctx, s.tcp, s.guard(routes, false)) })
	}
	if s.history != nil {
		group.Go(func() error { return s.history.keep(ctx) })
	}
	return group.Wait()
}

// traced is what a request is called in traces: those of the operator alone are.
func (s *Server) traced(r *http.Request) string {
	if !isTrusted(r.Context()) {
		return ""
	}
	_, pattern := s.mux.Handler(r)
	return pattern
}

// Listen opens the listeners, so that an address in use is found before
// anything else starts. Run closes them; without a Run, Close does.
func (s *Server) Listen(ctx context.Context) error {
	socket, err := listenSocket(ctx, filepath.Join(s.cfg.Dir, SocketName))
	if err != nil {
		return err
	}
	s.socket = newLobby(socket, s.limits.socket, s.limits.socket, s.cfg.Log)
	if err := s.listenOCI(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	if s.cfg.Address == "" && s.oci == nil {
		return nil
	}
	if s.token, err = loadToken(filepath.Join(s.cfg.Dir, TokenName)); err != nil {
		return errors.Join(err, s.Close())
	}
	if s.cfg.Address == "" {
		return nil
	}
	if s.tcp, err = s.listenTCP(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// Close closes listeners that were opened and not run.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []net.Listener{s.socket, s.tcp, s.oci} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// listenSocket replaces a socket that nobody serves; the lock on the data
// folder, taken before, says that no other node does.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("API socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("API socket: %w", err), l.Close())
	}
	return l, nil
}

// listenOCI opens the door for container runtimes, which are on this host.
func (s *Server) listenOCI(ctx context.Context) error {
	if s.cfg.Node.Door == nil {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Node.Door.Address())
	if err != nil {
		return fmt.Errorf("--oci %s: %w", s.cfg.Node.Door.Address(), err)
	}
	s.oci = newLobby(l, s.limits.tcp, s.limits.tcp, s.cfg.Log) // all of one host
	return nil
}

// paced has a handler's client read on, or be cut off.
func (s *Server) paced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := paced{w, s.limits.write}
		answer.extend()
		defer answer.extend()
		if g, known := r.Context().Value(guestKey{}).(*guest); known {
			defer g.serve(true)()
		}
		next.ServeHTTP(answer, r)
	})
}

// shown tells the door for container runtimes whether a request shows the token, as a bearer's or as anybody's password.
func (s *Server) shown(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if s.hasToken(r) || s.token != "" && subtle.ConstantTimeCompare([]byte(password), []byte(s.token)) == 1 {
			r = r.WithContext(oci.WithToken(r.Context()))
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) listenTCP(ctx context.Context) (net.Listener, error) {
	host, _, err := net.SplitHostPort(s.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("--api %q: %w: want HOST:PORT", s.cfg.Address, content.ErrInvalid)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("--api %s: %w", s.cfg.Address, err)
	}
	l = newLobby(l, s.limits.tcp, s.limits.client, s.cfg.Log)
	if IsLoopback(host) {
		return l, nil
	}
	cert, err := loadCertificate(s.cfg.Dir, host)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// IsLoopback reports whether a host is reached from itself alone: there is no TLS on it.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: s.limits.header, IdleTimeout: s.limits.idle, MaxHeaderBytes: 32 << 10, ConnContext: withGuest,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: s.limits.streams, MaxReceiveBufferPerConnection: bodyMax, MaxReceiveBufferPerStream: bodyMax,
			SendPingTimeout: s.limits.idle, WriteByteTimeout: s.limits.write,
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // anybody can make it complain
	}
	ended := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !unhook() {
		<-ended // Serve returns when a shutdown begins
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("API on %s: %w", l.Addr(), err)
	}
	return nil
}

// guard decides who may pass: everyone over the socket; over TCP those with the
// token, and anyone to the routes that need none. A page of another origin is shown
// what is public. Over the socket, to which a tunnel may lead from where browsers are,
// nobody is served who asks for it under a name of the DNS.
func (s *Server) guard(next http.Handler, socket bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok := socket || s.hasToken(r)
		answer := paced{w, s.limits.write}
		answer.extend()
		defer answer.extend() // for what is sent when the handler has returned
		if socket && !IsOwn(r.Host) {
			s.refuse(answer, r, http.StatusForbidden, "ask the node's socket as localhost, or by an address: "+strconv.Quote(r.Host)+" may be a name of anybody's")
			return
		}
		origin := r.Header.Get("Origin")
		foreign := origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host
		if foreign && !isPublic(r.URL.Path) {
			s.refuse(answer, r, http.StatusForbidden, "this page is of another origin than the node: open the dashboard at the node's own address")
			return
		}
		if !ok && (r.Header.Get("Authorization") != "" || !isOpen(r.Method, r.URL.Path)) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			s.refuse(answer, r, http.StatusUnauthorized, "send `Authorization: Bearer TOKEN`; the token is in the node's data folder, in "+TokenName)
			return
		}
		if ok = ok && !foreign; !ok && isPublic(r.URL.Path) {
			allowPages(w.Header())
		}
		if ok && !isProxied(r.URL.Path) && !s.readBody(answer, r) {
			return
		}
		if g, known := r.Context().Value(guestKey{}).(*guest); known {
			defer g.serve(ok)()
		}
		r = r.WithContext(context.WithValue(context.WithValue(r.Context(), trusted{}, ok), local{}, socket))
		if ok {
			next.ServeHTTP(answer, r)
		} else {
			s.serveStranger(next, answer, r)
		}
	})
}

// IsOwn tells a Host that is no name of the DNS: whoever has one may let it mean the browser's own host, and
// have a page ask there as if it were of the same origin.
func IsOwn(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	return net.ParseIP(name) != nil || !strings.Contains(name, ".") || strings.HasSuffix(name, ".localhost")
}

// isOpen tells the routes that need no token; what they show of content is the
// public part.
func isOpen(method, path string) bool {
	switch method {
	case http.MethodGet, http.MethodHead:
		return isFree(path) || isPublic(path)
	case http.MethodOptions:
		return isPublic(path)
	}
	return false
}

// isFree tells the open routes that cost next to nothing: they are served whoever asks
// for what else.
func isFree(path string) bool {
	return path == "/healthz" || path == "/readyz" || path == "/openapi.json" || path == "/" || strings.HasPrefix(path, web.Prefix)
}

// packedMin is what is worth packing: less goes in one piece anyway.
const packedMin = 1400

// compressed has documents packed for who takes them so: lists say the same words again and again.
func compressed(h http.Handler) http.Handler {
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(packedMin), gzhttp.ContentTypes([]string{"application/json", "text/html", "text/css", "text/javascript"}), gzhttp.EnableZstd(false))
	if err != nil {
		panic(err) // of the options, which are right
	}
	packs := wrap(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isProxied(r.URL.Path) { // what an instance answers is its own
			h.ServeHTTP(w, r)
			return
		}
		packs.ServeHTTP(w, r)
	})
}

func (s *Server) hasToken(r *http.Request) bool {
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && s.token != "" && subtle.ConstantTimeCompare([]byte(got), []byte(s.token)) == 1
}

// loadToken reads the token, which may be an operator's own, or makes one at the
// first start.
func loadToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	switch token := strings.TrimSpace(string(b)); {
	case err == nil && len(token) < tokenMin:
		return "", fmt.Errorf("API token in %s: %w: it has %d characters, want at least %d; without the file the node makes one", path, content.ErrInvalid, len(token), tokenMin)
	case err == nil:
		return token, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("API token: %w", err)
	}
	token := rand.Text() + rand.Text() // one alone is shorter than tokenMin
	if err := durable.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("API token: %w", err)
	}
	return token, nil
}

// CertificateName and certificateKeyName are the files of the API's TLS
// certificate. An operator may put a certificate of their own there; without
// one the node signs its own at the first start, which clients pin.
const (
	CertificateName    = "api.crt"
	certificateKeyName = "api.key"
)

// certificateLifetime of the certificate that a node signs for itself. It is
// pinned by its clients, so its age protects nobody.
const certificateLifetime = 20 * 365 * 24 * time.Hour

func loadCertificate(dir, host string) (cert tls.Certificate, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("API certificate: %w", err)
		}
	}()
	crt, key := filepath.Join(dir, CertificateName), filepath.Join(dir, certificateKeyName)
	if exists(crt) || exists(key) { // of one alone, an operator's, the error says that the other is missing
		return tls.LoadX509KeyPair(crt, key)
	}
	crtPEM, keyPEM, err := selfSign(host)
	if err == nil { // a crash between the two leaves a key alone, which the next start asks about
		err = errors.Join(durable.WriteFile(key, keyPEM, 0o600), durable.WriteFile(crt, crtPEM, 0o644))
	}
	if err != nil {
		return cert, err
	}
	return tls.X509KeyPair(crtPEM, keyPEM)
}

// exists is true too for what can't be looked at.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func selfSign(host string) (crtPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "grange node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	name, err := os.Hostname()
	if err == nil {
		t.DNSNames = append(t.DNSNames, name)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		t.IPAddresses = append(t.IPAddresses, ip)
	} else if host != "" && ip == nil {
		t.DNSNames = append(t.DNSNames, host)
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				t.IPAddresses = append(t.IPAddresses, n.IP)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
