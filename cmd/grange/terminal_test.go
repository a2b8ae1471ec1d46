//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/cmd/grange/ask"
)

// openTerminal returns both ends of a terminal of so many columns.
func openTerminal(t *testing.T, columns uint16) (screen, end *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(screen.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	end, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	return screen, end
}

// TestErrorsStandOnTheirOwnLine behind a bar, which never takes more than one line, and
// on a terminal that is too narrow for one.
func TestErrorsStandOnTheirOwnLine(t *testing.T) {
	const op = `{"id": "1", "kind": "import", "target": "a-name-that-is-long-as-names-can-be", "state": %q, "done": 500, "total": 1000, "error": "the source has gone away while it was read", "bytes": {"farm": 3000000, "origin": 2000000, "cache": 1000000}}`
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /api/images/x", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, op, "running") })
	mux.HandleFunc("GET /api/operations/1/events", func(w http.ResponseWriter, _ *http.Request) {
		for _, state := range []string{"running", "running", "failed"} {
			fmt.Fprintf(w, "data: "+op+"\n\n", state)
		}
	})
	data := serveAt(t, mux)
	for _, columns := range []int{120, 80, 40} {
		screen, end := openTerminal(t, uint16(columns))
		shown := make(chan string)
		go func() {
			b, _ := io.ReadAll(screen) // which ends with an error when nobody has the other end
			shown <- string(b)
		}()
		var out bytes.Buffer
		code := run(t.Context(), []string{"image", "import", "x", "/dev/null", "--data", data}, ask.Stdio{In: strings.NewReader(""), Out: &out, Err: end}, nil)
		end.Close()
		text := <-shown
		before, complaint, found := strings.Cut(text, "grange: ")
		if code != 1 || !found || before != "" && !strings.HasSuffix(before, "\r") && !strings.HasSuffix(before, "\n") {
			t.Errorf("%d columns: code %d, %q", columns, code, text)
		}
		for _, line := range strings.FieldsFunc(before+complaint, func(r rune) bool { return r == '\r' || r == '\n' }) {
			if n := utf8.RuneCountInString(line); n > columns && columns > 40 {
				t.Errorf("%d columns: %d of %q", columns, n, line)
			}
		}
		if columns == 40 && !strings.Contains(complaint, "\n  ") {
			t.Errorf("it is not wrapped: %q", complaint)
		}
	}
}

// TestLogsSteerNoTerminal, whatever a workload was told to say; a character that comes in two parts is one.
func TestLogsSteerNoTerminal(t *testing.T) {
	seen := make(chan struct{})
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "said\x1b[2J \xc3")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-seen:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "\xa9 \xff")
	}))
	screen, end := openTerminal(t, 80)
	shown := make(chan string)
	go func() {
		first := make([]byte, 4)
		_, _ = io.ReadFull(screen, first)
		close(seen)
		rest, _ := io.ReadAll(screen)
		shown <- string(first) + string(rest)
	}()
	code := run(t.Context(), []string{"instance", "logs", "x", "--data", data}, ask.Stdio{In: strings.NewReader(""), Out: end, Err: io.Discard}, nil)
	end.Close()
	if text := <-shown; code != 0 || text != `said\u001b[2J é \ufffd` {
		t.Errorf("code %d, %q", code, text)
	}
}
