package supervise

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes"
)

// manager is the service manager's end.
type manager struct{ socket *net.UnixConn }

func newManager(t *testing.T, watchdog time.Duration) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "")
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", watchdog.String()[:len(watchdog.String())-1]+"000000")
	}
	return &manager{socket}
}

// hears returns what is said next, or nothing within a time.
func (m *manager) hears(t *testing.T, within time.Duration) []string {
	t.Helper()
	b := make([]byte, 4096)
	if err := m.socket.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	n, err := m.socket.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b[:n]), "\n")
}

// awaits returns the first message with a line that begins so, and fails if one before it
// has a line that begins as another.
func (m *manager) awaits(t *testing.T, line, not string) []string {
	t.Helper()
	begins := func(with string) func(string) bool {
		return func(s string) bool { return with != "" && strings.HasPrefix(s, with) }
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		said := m.hears(t, time.Second)
		if slices.ContainsFunc(said, begins(line)) {
			return said
		}
		if slices.ContainsFunc(said, begins(not)) {
			t.Fatalf("it said %q before %q", said, line)
		}
	}
	t.Fatalf("it did not say %q", line)
	return nil
}

// node answers at the socket of a data folder.
func node(t *testing.T, h http.HandlerFunc) (data string) {
	t.Helper()
	data, err := os.MkdirTemp("", "grange") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(data) })
	l, err := net.Listen("unix", filepath.Join(data, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return data
}

func supervisor(t *testing.T, data string) *Supervisor {
	t.Helper()
	s, err := New(data, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Beside())
	return s
}

// TestReadyWhenTheNodeIs, not when it listens; a handover takes that back, a refused one
// says why and gives it again, and a stop is said.
func TestReadyWhenTheNodeIs(t *testing.T) {
	m := newManager(t, 0)
	answers := make(chan string, 1)
	answer := `{"ready": false, "waiting": ["its volumes"]}`
	s := supervisor(t, node(t, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case answer = <-answers:
		default:
		}
		io.WriteString(w, answer)
	}))
	if said := m.hears(t, time.Second); slices.ContainsFunc(said, func(l string) bool { return strings.HasPrefix(l, "STATUS=") }) {
		t.Errorf("it asked who did not listen yet: %q", said)
	}
	s.Serving()
	m.awaits(t, "STATUS=waits for its volumes", "READY=1")
	answers <- `{"ready": true, "volumes": 2, "origin": {"state": "ok"}, "warnings": [{"about": "farm", "text": "two\nlines"}]}`
	if said := m.awaits(t, "READY=1", ""); !slices.Contains(said, "STATUS=ready; volumes: 2; origin: ok; amiss: farm: two lines") {
		t.Errorf("ready: %q", said)
	}
	s.Reloading()
	if said := m.awaits(t, "RELOADING=1", "READY=1"); !slices.ContainsFunc(said, func(l string) bool { return strings.HasPrefix(l, "MONOTONIC_USEC=") }) {
		t.Errorf("reloading: %q", said)
	}
	s.Refused(errors.New("bad\nconfig"))
	if said := m.awaits(t, "READY=1", ""); !strings.Contains(strings.Join(said, "\n"), "; no handover: bad config") {
		t.Errorf("refused: %q", said)
	}
	s.Ending(volumes.ErrHandover)
	s.Ending(errors.New("told to"))
	m.awaits(t, "STOPPING=1", "READY=1")
}

// TestASilentNodeGivesNoSignOfLife: that its process runs, and this goroutine, is none.
func TestASilentNodeGivesNoSignOfLife(t *testing.T) {
	m := newManager(t, time.Second)
	hangs := make(chan struct{})
	silent := make(chan bool, 1)
	s := supervisor(t, node(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
			silent <- true
			select {
			case <-hangs:
			case <-r.Context().Done():
			}
		default:
			io.WriteString(w, `{"ready": true}`)
		}
	}))
	m.awaits(t, "WATCHDOG=1", "") // while it opens its data nobody can ask
	s.Serving()
	m.awaits(t, "READY=1", "")
	m.awaits(t, "WATCHDOG=1", "")
	silent <- true
	m.awaits(t, "STATUS=does not answer itself", "")
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if said := m.hears(t, time.Second); slices.Contains(said, "WATCHDOG=1") {
			t.Fatalf("it gave a sign of life: %q", said)
		}
	}
	<-silent
	close(hangs)
	m.awaits(t, "WATCHDOG=1", "")
}
