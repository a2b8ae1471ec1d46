package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/node"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testToken = "a token that is as long as tokens must be"

// shortLimits are the product's with deadlines that a test waits for.
func shortLimits() limits {
	l := defaultLimits()
	l.header, l.body, l.refused, l.write = time.Second, time.Second, 100*time.Millisecond, time.Second
	return l
}

// served is a server of a few routes, on loopback and on a socket.
type served struct {
	*Server
	address, path string
	hold          chan struct{} // ends the requests of /api/resolve/slow
	held          chan struct{} // has one for each of them, some at most
}

func serveTest(t *testing.T, l limits) served {
	t.Helper()
	mux := http.NewServeMux()
	s := served{newServer(Config{Node: &node.Node{}, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, mux, l), "", "", make(chan struct{}), make(chan struct{}, 64)}
	s.token = testToken
	mux.HandleFunc("/api/volumes/{name}", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	mux.HandleFunc("/api/resolve/fast", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/api/resolve/slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case s.held <- struct{}{}:
		default:
		}
		select {
		case <-s.hold:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/api/big", func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 1<<20)
		for range 64 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.path = filepath.Join(s.cfg.Dir, SocketName)
	socket, err := listenSocket(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.address, s.tcp, s.socket = tcp.Addr().String(), newLobby(tcp, l.tcp, l.client, s.cfg.Log), newLobby(socket, l.socket, l.socket, s.cfg.Log)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial connects, over TCP from an address of loopback.
func (s served) dial(t *testing.T, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a request from an address of loopback, or over the socket, and returns the
// status and the body of the answer.
func (s served) ask(t *testing.T, from, method, path, body string) (int, string) {
	t.Helper()
	var c net.Conn
	if from != "socket" {
		c = s.dial(t, from)
	} else {
		var err error
		if c, err = net.Dial("unix", s.path); err != nil {
			t.Fatal(err)
		}
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", method, path, testToken, len(body), body)
	return answerOf(t, c)
}

func answerOf(t *testing.T, c net.Conn) (int, string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// closed waits until the other side has closed.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("a connection is open still")
	}
}

// TestHangingBodies: one host opens 3,000 connections whose bodies never come, some
// with the token. Everybody is served meanwhile, the host itself too, and all of them
// are closed at the deadline.
func TestHangingBodies(t *testing.T) {
	s := serveTest(t, shortLimits())
	hanging := make([]net.Conn, 3000)
	for i := range hanging {
		hanging[i] = s.dial(t, "127.0.0.2")
		authorization := ""
		if i%2 == 0 {
			authorization = "Authorization: Bearer " + testToken + "\r\n"
		}
		fmt.Fprintf(hanging[i], "PUT /api/volumes/v HTTP/1.1\r\nHost: x\r\n%sContent-Length: 100\r\n\r\n", authorization)
		if i%500 == 0 {
			for _, from := range []string{"socket", "127.0.0.1", "127.0.0.2"} {
				if status, body := s.ask(t, from, "PUT", "/api/volumes/v", "hello"); status != http.StatusOK || body != "hello" {
					t.Fatalf("from %s: %d %q", from, status, body)
				}
			}
		}
	}
	lobby := s.tcp.(*lobby)
	lobby.mu.Lock()
	if n := len(lobby.guests); n > s.limits.client+1 {
		t.Errorf("%d connections are open", n)
	}
	lobby.mu.Unlock()
	for _, c := range hanging {
		closed(t, c)
	}
}

// TestOperatorIsNotShownOut: those who hang take each other's place, never that of a
// request that is being served.
func TestOperatorIsNotShownOut(t *testing.T) {
	s := serveTest(t, shortLimits())
	c := s.dial(t, "127.0.0.1")
	fmt.Fprintf(c, "GET /api/resolve/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", testToken)
	for range 3 * s.limits.client {
		fmt.Fprint(s.dial(t, "127.0.0.1"), "PUT /api/volumes/v HTTP/1.1\r\n")
	}
	if status, _ := s.ask(t, "127.0.0.1", "GET", "/healthz", ""); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	close(s.hold)
	if status, _ := answerOf(t, c); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

func TestSlowHeadersEnd(t *testing.T) {
	s := serveTest(t, shortLimits())
	silent, slow := s.dial(t, "127.0.0.1"), s.dial(t, "127.0.0.1")
	fmt.Fprint(slow, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	closed(t, silent)
	closed(t, slow)
}

func TestSlowReadersEnd(t *testing.T) {
	s := serveTest(t, shortLimits())
	c := s.dial(t, "127.0.0.1").(*net.TCPConn)
	c.SetReadBuffer(4096)
	fmt.Fprintf(c, "GET /api/big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", testToken)
	lobby := s.tcp.(*lobby)
	left := time.After(30 * time.Second)
	for { // without a read
		lobby.mu.Lock()
		n := len(lobby.guests)
		lobby.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-left:
			t.Fatal("the connection is open still")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestLongWorkHasNoDeadline: a request whose body came in time takes as long as it
// takes.
func TestLongWorkHasNoDeadline(t *testing.T) {
	l := shortLimits()
	l.body, l.write, l.header = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	s := serveTest(t, l)
	var once sync.Once
	s.mux.HandleFunc("/api/long", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			once.Do(func() { t.Error("the request was given up:", context.Cause(r.Context())) })
		case <-time.After(10 * l.body):
		}
		io.WriteString(w, "done")
	})
	if status, body := s.ask(t, "127.0.0.1", "PUT", "/api/long", "hello"); status != http.StatusOK || body != "done" {
		t.Errorf("%d %q", status, body)
	}
}

func TestLongBodyIsRefused(t *testing.T) {
	s := serveTest(t, shortLimits())
	if status, _ := s.ask(t, "127.0.0.1", "PUT", "/api/volumes/v", strings.Repeat("x", bodyMax+1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", status)
	}
	const path = instancesPath + "/web/proxy/a"
	s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	if status, said := s.ask(t, "127.0.0.1", "PUT", path, strings.Repeat("x", bodyMax+1)); status != http.StatusOK || said != fmt.Sprint(bodyMax+1, error(nil)) {
		t.Errorf("an instance's own page: %d %q", status, said)
	}
}

// TestPagesThatCantBeHad: who asks for an instance's own page is told why there is none, and of which instance.
func TestPagesThatCantBeHad(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // a workload that answers nobody
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
	s := &Server{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	for _, x := range []struct {
		err    error
		status int
		said   string
	}{{node.ErrNoVolumes, http.StatusUnprocessableEntity, ""}, {nil, http.StatusBadGateway, "grange instance logs web"}} {
		answer, r := httptest.NewRecorder(), httptest.NewRequest("GET", instancesPath+"/web/proxy/a", nil)
		r.SetPathValue("name", "web")
		s.pages(func(string) (int, error) { return l.Addr().(*net.TCPAddr).Port, x.err })(answer, r)
		if answer.Code != x.status || !strings.Contains(answer.Body.String(), x.said) || !strings.Contains(answer.Header().Get("Content-Type"), "problem") {
			t.Errorf("%v: %d %s", x.err, answer.Code, answer.Body)
		}
	}
}

// TestPagesAreOfTheirOwnOrigin: whatever a workload answers, a browser takes its pages for a stranger's to the dashboard.
func TestPagesAreOfTheirOwnOrigin(t *testing.T) {
	workload := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "sandbox allow-same-origin allow-scripts")
		w.Header().Set("Service-Worker-Allowed", "/")
		w.Header().Set("Clear-Site-Data", `"*"`)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer workload.Close()
	s := &Server{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	answer, r := httptest.NewRecorder(), httptest.NewRequest("GET", instancesPath+"/web/proxy/", nil)
	s.pages(func(string) (int, error) { return workload.Listener.Addr().(*net.TCPAddr).Port, nil })(answer, r)
	h := answer.Header()
	if last := h.Values("Content-Security-Policy"); answer.Code != http.StatusTeapot || len(last) != 2 || last[1] != pagesPolicy || strings.Contains(pagesPolicy, "same-origin") {
		t.Errorf("%d, policies %q", answer.Code, last)
	}
	if h.Get("Service-Worker-Allowed") != "" || h.Get("Clear-Site-Data") != "" {
		t.Errorf("%v", h)
	}
}

// TestSocketUnderAName: a page whose host's name has come to mean the end of a tunnel to the socket is no operator.
func TestSocketUnderAName(t *testing.T) {
	s := serveTest(t, shortLimits())
	for host, status := range map[string]int{
		"node": 200, "localhost:8080": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "a.localhost": 200,
		"rebound.example": 403, "rebound.example:8080": 403, "127.0.0.1.rebound.example": 403, "localhost.rebound.example": 403,
	} {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "PUT /api/volumes/v HTTP/1.1\r\nHost: %s\r\nOrigin: http://%[1]s\r\nContent-Length: 1\r\n\r\nx", host)
		if got, said := answerOf(t, c); got != status {
			t.Errorf("Host %s: %d %s", host, got, said)
		}
		c.Close()
	}
}

// TestStrangersSpendTheirOwn: when strangers have spent what is theirs they are told
// to wait, and the operator is served.
func TestStrangersSpendTheirOwn(t *testing.T) {
	l := shortLimits()
	l.strangers, l.strangersRate = 4, 50
	s := serveTest(t, l)
	stranger := func(path string) net.Conn {
		c := s.dial(t, "127.0.0.2")
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		return c
	}
	var waiting []net.Conn
	for range l.strangers {
		waiting = append(waiting, stranger("/api/resolve/slow"))
	}
	refused := func(path string) bool {
		c := stranger(path)
		defer c.Close()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") == "" {
			t.Error("it does not say when to come again")
		}
		return resp.StatusCode == http.StatusTooManyRequests
	}
	for range waiting { // before anybody else comes, who would take the place of one
		<-s.held
	}
	if !refused("/api/resolve/fast") {
		t.Error("one more than may is served")
	}
	if status, _ := s.ask(t, "127.0.0.2", "GET", "/api/resolve/fast", ""); status != http.StatusOK {
		t.Errorf("the operator gets %d", status)
	}
	if refused("/healthz") {
		t.Error("the health of the node is not to be had")
	}
	close(s.hold)
	for _, c := range waiting {
		if status, _ := answerOf(t, c); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}
	for !refused("/api/resolve/fast") { // by their rate
	}
	c := s.dial(t, "127.0.0.2")
	fmt.Fprint(c, "GET /api/resolve/fast HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
	if status, _ := answerOf(t, c); status != http.StatusBadRequest {
		t.Errorf("a stranger's body: %d", status)
	}
}

// exhausted is a listener for which there are no files.
type exhausted struct{ net.Listener }

func (exhausted) Accept() (net.Conn, error) { return nil, syscall.EMFILE }

func TestFailedAcceptsAreToldOfOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var text bytes.Buffer
	door := newLobby(exhausted{l}, 1, 1, slog.New(slog.NewTextHandler(&text, nil)))
	for range 100 {
		if _, err := door.Accept(); !errors.Is(err, syscall.EMFILE) {
			t.Fatal(err)
		}
	}
	if n := strings.Count(text.String(), "\n"); n != 1 {
		t.Errorf("%d lines: %s", n, text.String())
	}
}
