package nbd_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/origin/content"
)

// start runs a server on a unix socket until the test ends, and returns the URI
// of an export.
func start(tb testing.TB, cfg nbd.Config, name string) string {
	tb.Helper()
	_, uri := startServer(tb, cfg, name)
	return uri
}

func startServer(tb testing.TB, cfg nbd.Config, name string) (*nbd.Server, string) {
	tb.Helper()
	l, err := nbd.Listen(tb.Context(), "unix:"+filepath.Join(tb.TempDir(), "s"))
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Listeners = append(cfg.Listeners, l)
	s, err := nbd.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("run: %v", err)
		}
	})
	return s, nbd.URI(l.Addr(), name)
}

// waitFor returns once a server answers.
func waitFor(tb testing.TB, uri string) {
	tb.Helper()
	info := tool(tb, "nbdinfo", "libnbd-bin")
	poll(tb, uri, func() bool { return exec.Command(info, "--size", uri).Run() == nil })
}

// waitForSocket returns once a server listens.
func waitForSocket(tb testing.TB, path string) {
	tb.Helper()
	poll(tb, path, func() bool {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func poll(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("%s does not answer", what)
		}
	}
}

func TestConfigRejectsContradictions(t *testing.T) {
	exports := newShelf(nil)
	for name, cfg := range map[string]nbd.Config{
		"no exports":        {Listeners: make([]net.Listener, 1)},
		"nowhere to listen": {Exports: exports},
	} {
		if _, err := nbd.New(cfg); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want it refused as invalid", name, err)
		}
	}
}

func TestRunListensAndCleansUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := nbd.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := nbd.New(nbd.Config{Exports: newShelf(nil), Listeners: []net.Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	waitForSocket(t, path)
	greet(t, "nbd+unix:///?socket="+path)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	l, err := nbd.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := nbd.Listen(t.Context(), l.Addr().String()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("%v, want an error that names the address", err)
	}
}

func TestStopDrainsRequestsInFlight(t *testing.T) {
	disk := newSlow()
	l, err := nbd.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shelf := newShelf(map[string]blockdev.Device{"disk": disk})
	s, err := nbd.New(nbd.Config{Exports: shelf, Listeners: []net.Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	uri := nbd.URI(l.Addr(), "disk")
	c, idle := dial(t, uri), dial(t, uri)
	c.ask(cmdWrite, 0, slowFrom, pageSize, make([]byte, pageSize)...)
	<-disk.entered
	cancel()
	idle.ended() // the stop is under way
	close(disk.gate)
	if a := c.answer(); a.code != 0 {
		t.Errorf("the request in flight: error %d", a.code)
	}
	c.ended()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if n := shelf.opened("disk"); n != 0 {
		t.Errorf("%d devices are still open", n)
	}
}

func TestStopCancelsWhatTakesTooLong(t *testing.T) {
	disk := newSlow()
	l, err := nbd.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := nbd.New(nbd.Config{
		Exports: newShelf(map[string]blockdev.Device{"disk": disk}), Listeners: []net.Listener{l}, DrainTimeout: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	c := dial(t, nbd.URI(l.Addr(), "disk"))
	c.ask(cmdWrite, 0, slowFrom, pageSize, make([]byte, pageSize)...)
	<-disk.entered
	cancel()
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run: %v, want it to say that requests were cancelled", err)
	}
}

func TestGarbageIsClosedAndCounted(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s, uri := startServer(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": newMemory(diskSize)})}, "disk")
	registry.MustRegister(s.Collectors()...)
	garbage := [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		pack(uint32(3), "GET / HTTP/1.1\r\n\r\n"),
		pack(uint32(0xffffffff)),
	}
	for _, g := range garbage {
		conn := connect(t, uri)
		if _, err := conn.Write(g); err != nil {
			t.Fatal(err)
		}
		c := &client{TB: t, conn: conn, in: newReader(conn)}
		c.bytes(18)
		c.ended()
	}
	c := dial(t, uri)
	c.send("this is no request, but long enough")
	c.ended()
	poll(t, "all are counted", func() bool { // a moment after they are closed
		return metric(t, registry, "grange_nbd_connections_total", "garbage") == float64(len(garbage)+1)
	})
}

func TestHandshakeHasADeadline(t *testing.T) {
	uri := start(t, nbd.Config{
		Exports: newShelf(map[string]blockdev.Device{"disk": newMemory(diskSize)}), HandshakeTimeout: 50 * time.Millisecond,
	}, "disk")
	opened := dial(t, uri)
	silent := greet(t, uri)
	silent.ended()
	if a := opened.do(cmdRead, 0, 0, 512); a.code != 0 { // idle for longer than that
		t.Errorf("after the deadline: error %d", a.code)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	uri := start(t, nbd.Config{
		Exports: newShelf(map[string]blockdev.Device{"disk": newMemory(diskSize)}), ConnectionsMax: 2,
	}, "disk")
	dial(t, uri)
	last := dial(t, uri)
	third := connect(t, uri)
	(&client{TB: t, conn: third, in: newReader(third)}).ended()
	last.send(last.request(1, cmdDisconnect, 0, 0, 0))
	last.ended()
}

func TestUnixSocketIsPrivateAndUnique(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := nbd.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("mode is %v", info.Mode())
	}
	if _, err := nbd.Listen(t.Context(), "unix:"+path); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a second server: %v, want a conflict", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := nbd.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn := connect(t, "nbd+unix:///?socket="+path)
	conn.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		address string
		want    error
	}{
		{"unix:" + file, content.ErrExists},
		{"unix:", content.ErrInvalid},
		{"unix:/" + strings.Repeat("x", 120), content.ErrInvalid},
		{"unix:" + filepath.Join(dir, "none", "s"), fs.ErrNotExist},
	} {
		if _, err := nbd.Listen(t.Context(), tt.address); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.address, err, tt.want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestURI(t *testing.T) {
	for _, tt := range []struct {
		address net.Addr
		name    string
		want    string
	}{
		{&net.UnixAddr{Name: "/var/lib/grange/nbd.sock", Net: "unix"}, "web1", "nbd+unix:///web1?socket=/var/lib/grange/nbd.sock"},
		{&net.UnixAddr{Name: "/a b/c&d", Net: "unix"}, "web1", "nbd+unix:///web1?socket=/a%20b/c%26d"},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 10809}, "web1", "nbd://127.0.0.1:10809/web1"},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 10809}, "a b", "nbd://[::1]:10809/a%20b"},
	} {
		if got := nbd.URI(tt.address, tt.name); got != tt.want {
			t.Errorf("URI is %s, want %s", got, tt.want)
		}
	}
}

// metric returns the value of a counter with that label.
func metric(tb testing.TB, g prometheus.Gatherer, name, label string) float64 {
	tb.Helper()
	families, err := g.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
