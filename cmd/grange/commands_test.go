package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/origin/trust"
)

// leaves are all commands.
func leaves(t *testing.T) []*kong.Node {
	t.Helper()
	var c cli
	parser, err := newParser(&c, ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model.Leaves(true)
}

// anyNode answers each request with a document of its kind.
func anyNode(t *testing.T) http.Handler {
	const op = `{"id": "1", "kind": "import", "target": "x", "state": "done", "result": {"import": {}}}`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		switch last := path[strings.LastIndex(path, "/")+1:]; {
		case last == "events":
			fmt.Fprintf(w, "data: %s\n\n", op)
		case last == "export" && strings.HasPrefix(path, "/api/trees/"):
			io.WriteString(w, op)
		case last == "export":
			var req struct{ File string }
			if err := json.NewDecoder(r.Body).Decode(&req); err != nil || os.WriteFile(req.File, []byte("disk"), 0o600) != nil {
				t.Errorf("export: %+v, %v", req, err)
			}
			io.WriteString(w, op)
		case last == "snapshots" && r.Method == "POST":
			io.WriteString(w, `{"snapshot_id": "x@1", "operation": "1"}`)
		case last == "gc", last == "copy", last == "usage", last == "warm", last == "profile", last == "verify", last == "move", last == "promote", r.Method == "PUT" && (strings.HasPrefix(path, "/api/images/") || strings.HasPrefix(path, "/api/trees/")) && strings.Count(path, "/") == 3, last == "1":
			io.WriteString(w, op)
		case r.Method == "GET" && slices.Contains([]string{"images", "trees", "volumes", "instances", "members", "tokens", "operations", "snapshots", "changes"}, last):
			io.WriteString(w, `[{"name": "x"}]`)
		case last == "logs":
			io.WriteString(w, "said\n")
		case r.Method == "PUT" && strings.HasPrefix(path, "/api/instances/"):
			io.WriteString(w, `{"name": "x", "state": "provisioning", "operation": "1"}`)
		case last == "pin", r.Method == "DELETE" && !strings.Contains(path, "images") && !strings.Contains(path, "members"), r.Method == "PUT" && last == "key":
			w.WriteHeader(http.StatusNoContent)
		default:
			io.WriteString(w, `{"ready": true, "origin": {"state": "ok"}, "key": "k"}`)
		}
	})
}

// arguments of each command that needs some.
func arguments(t *testing.T, key string) map[string][]string {
	return map[string][]string{
		"tree import": {"x", t.TempDir()}, "tree show": {"x"}, "tree tag": {"x", "y"}, "tree warm": {"x"}, "tree pin": {"x"}, "tree unpin": {"x"}, "tree verify": {"x"}, "tree mount": {"x", "/proc"},
		"tree unmount": {t.TempDir()}, "tree export": {"x", t.TempDir()}, "tree rm": {"x"}, "image import": {"x", "/dev/null", "--profile"}, "image show": {"x"}, "image tag": {"x", "y"}, "image warm": {"x"}, "image profile": {"x"}, "image pin": {"x"}, "image unpin": {"x"}, "image verify": {"x"},
		"image export": {"x", filepath.Join(t.TempDir(), "file")}, "image rm": {"x"}, "volume create": {"x"}, "volume attach": {"x"}, "volume show": {"x"}, "volume detach": {"x"}, "volume rm": {"x", "--purge"},
		"volume move": {"x", "n"}, "volume snapshot": {"x", "--wait", "durable"}, "volume rollback": {"x@1"}, "volume resize": {"x", "2G"}, "volume limit": {"x", "--iops", "100", "--rate", "1M/s"}, "volume changes": {"x@1", "x@2"},
		"volume export": {"snapshot:x@1", filepath.Join(t.TempDir(), "file")}, "image promote": {"volume:x", "y"}, "snapshot rm": {"x@1"},
		"instance provision": {"x"}, "instance hibernate": {"x"}, "instance wake": {"x"}, "instance deprovision": {"x"}, "instance obliterate": {"x"}, "instance show": {"x"}, "instance logs": {"x"},
		"origin copy": {"file:///copy"}, "cache evict": {"1G"}, "operation show": {"1"}, "operation cancel": {"2"}, "operation pause": {"2"}, "operation resume": {"2"}, "token create": {"--role", "node"}, "token revoke": {"x"}, "mesh revoke": {"x"},
		"mesh export-key": {filepath.Join(t.TempDir(), "key")}, "mesh import-key": {key}, "resolve": {"x"}, "why": {"x"}, "ping": {"x"}, "support": {filepath.Join(t.TempDir(), "support.tar.gz")}, "completion": {"bash"}, "oci configure": {"--certs-dir", t.TempDir()},
	}
}

// TestEveryCommandSpeaksJSON: with --json a document and nothing else goes to the
// standard output; without, something is said of what was done.
func TestEveryCommandSpeaksJSON(t *testing.T) {
	data := serveAt(t, anyNode(t))
	if err := os.Mkdir(filepath.Join(data, images.TempDir), 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "mesh.key")
	if err := trust.SaveKey(key, trust.NewPrivateKey()); err != nil {
		t.Fatal(err)
	}
	for _, leaf := range leaves(t) {
		name := strings.TrimPrefix(leaf.FullPath(), "grange ")
		if name == "node" || name == "seed" || name == "csi" {
			continue // which has a log
		}
		for _, asJSON := range []bool{true, false} {
			args := append(strings.Fields(name), "--data", data)
			args = append(args, arguments(t, key)[name]...)
			if asJSON {
				args = append(args, "--json")
			}
			_, out, complaint := command(t, args...)
			switch {
			case out == "":
				t.Errorf("%s: nothing is said; %s", name, complaint)
			case asJSON && !json.Valid([]byte(out)) && name != "instance logs" && name != "completion": // whose documents are texts
				t.Errorf("%s --json: %q; %s", name, out, complaint)
			}
		}
	}
	if _, out, _ := command(t, "status", "--all", "--json", "--data", data); !json.Valid([]byte(out)) || !strings.Contains(out, `"members"`) {
		t.Errorf("status --all: %s", out)
	}
}

// TestHelpSaysWhatThereIs, of each command, argument and flag, in 80 columns.
func TestHelpSaysWhatThereIs(t *testing.T) {
	t.Setenv("COLUMNS", "80")
	pages := [][]string{{"--help"}}
	for _, leaf := range leaves(t) {
		pages = append(pages, append(strings.Fields(strings.TrimPrefix(leaf.FullPath(), "grange ")), "--help"))
		if leaf.Help == "" {
			t.Errorf("%s has no help", leaf.FullPath())
		}
		for _, arg := range leaf.Positional {
			if arg.Help == "" {
				t.Errorf("%s: %s has no help", leaf.FullPath(), arg.Name)
			}
		}
		for _, flag := range leaf.Flags {
			if flag.Help == "" || strings.Contains(flag.Help, "version makes") || strings.Contains(flag.Help, "this version") {
				t.Errorf("%s: --%s: %q", leaf.FullPath(), flag.Name, flag.Help)
			}
		}
	}
	for _, page := range pages {
		code, out, _ := command(t, page...)
		if code != 0 {
			t.Errorf("%q: code %d", page, code)
		}
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%q: %d columns: %s", page, n, line)
			}
		}
	}
}

// TestColumnsFitTheTerminal: the widest are cut, and nothing where there is no terminal;
// what has a name and a value stays whole.
func TestColumnsFitTheTerminal(t *testing.T) {
	list := "NAME\tSTATE\tROOT\nweb\tattached\t" + strings.Repeat("b", 60) + "\nthe whole of a sentence between the rows\n"
	for _, width := range []int{0, 40, 80, 10} {
		for line := range strings.Lines(terminal.Columns(list, width)) {
			n := utf8.RuneCountInString(strings.TrimSpace(line))
			if width == 40 && strings.Contains(line, "web") && n != 40 || width == 0 && strings.Contains(line, "…") {
				t.Errorf("at %d: %d columns: %s", width, n, line)
			}
		}
	}
	if ids := terminal.Columns("ID\tSTARTED\tERROR\n1a2248929c377867\t"+ask.Moment(time.Now())+"\tno space left on the device\n", 40); !strings.Contains(ids, "1a2248929c377867  "+time.Now().Format("15:")) || !strings.Contains(ids, "…") {
		t.Errorf("%s", ids)
	}
	if got, want := terminal.Columns("root\tbbbbbbbbbb\nname\tx\n", 8), "root  bbbbbbbbbb\nname  x\n"; got != want {
		t.Errorf("%q", got)
	}
	if got, want := terminal.Columns("A\tB\tC\n1\t2\t3 \n4\t5\t\n", 0), "A  B  C\n1  2  3\n4  5\n"; got != want {
		t.Errorf("%q", got)
	}
}

func TestErrorsAreWrapped(t *testing.T) {
	if got, want := terminal.Wrap("grange: one two three four", 20), "grange: one two\n  three four"; got != want {
		t.Errorf("%q", got)
	}
	if got := terminal.Wrap("grange: one two three four", 0); strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
	var b bytes.Buffer
	ask.Complain(&b, "first\nsecond")
	if b.String() != "grange: first\ngrange: second\n" {
		t.Errorf("%q", b.String())
	}
}

// TestLogForPeople, and for programs; of either the last lines are kept, and none has a secret.
func TestLogForPeople(t *testing.T) {
	var b bytes.Buffer
	var kept recent
	logFlags{}.open(new(cli), &b, &kept).Info("serving", "node", "x y")
	if text := b.String(); !strings.HasSuffix(text, " INF serving node=\"x y\"\n") {
		t.Errorf("%q", text)
	}
	b.Reset()
	log := logFlags{LogFormat: "json", LogLevel: slog.LevelWarn}.open(new(cli), &b, &kept)
	log.Info("below the level")
	log.Warn("origin", "url", "https://user:hunter2@store/", "err", errors.New("token=hunter2 is refused"))
	if text := b.String(); !json.Valid(b.Bytes()) || strings.Contains(text, "hunter2") || !strings.Contains(text, "@store/") {
		t.Errorf("%s", text)
	}
	if text := string(kept.text()); strings.Count(text, "\n") != 2 || strings.Contains(text, "hunter2") {
		t.Errorf("%s", text)
	}
	for i := range 3 * recentMax / 100 {
		log.Warn(strings.Repeat("x", 100), "line", i)
	}
	switch text := kept.text(); {
	case len(text) < recentMax/2 || len(text) > 2*recentMax+1000 || text[0] != '{':
		t.Errorf("%d bytes are kept, from %.20q on", len(text), text)
	}
}

// TestListThatIsNotWhole says so, though it is empty.
func TestListThatIsNotWhole(t *testing.T) {
	for state, whole := range map[string]bool{"ok": true, "read-only": true, "unreachable": false, "none": false} {
		mux := http.NewServeMux()
		mux.Handle("/api/images", answer(`[]`))
		mux.Handle("/api/status", answer(`{"origin": {"state": "`+state+`"}}`))
		code, _, complaint := command(t, "image", "ls", "--data", serveAt(t, mux))
		if code != 0 || whole != (complaint == "") {
			t.Errorf("%s: code %d, %s", state, code, complaint)
		}
	}
}

// TestConfigOfTheDefaultPath is read, and need not be there.
func TestConfigOfTheDefaultPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grange.yaml")
	quota := func() (units.Size, error) {
		var c cli
		parser, err := newParser(&c, ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, kong.Vars{"config": path})
		if err != nil {
			t.Fatal(err)
		}
		_, err = parser.Parse([]string{"node"})
		return c.Node.Quota, err
	}
	if got, err := quota(); got != 20<<30 || err != nil {
		t.Errorf("without a file: %d, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("quota: 5G\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := quota(); got != 5<<30 || err != nil {
		t.Errorf("with a file: %d, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("qouta: 5G\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := quota(); err == nil {
		t.Error("a mistyped one is taken")
	}
}

// TestWhatCommandsOnDisksRefuse before the node is asked.
func TestWhatCommandsOnDisksRefuse(t *testing.T) {
	for _, x := range []struct{ line, want string }{
		{"volume create web2 --from debian", "want image:NAME, volume:NAME or snapshot:NAME@N"},
		{"volume create web2 --from snapshot:web1", "want snapshot:NAME@N"},
		{"volume create web2 --from volume:web1?at=noon", "name \"web1?at=noon\""},
		{"volume create a/b --size 1M", "name \"a/b\""},
		{"volume rollback web1", "want snapshot:NAME@N"},
		{"volume changes web1@1 web2@2", "web1@1 and web2@2 are of two volumes"},
		{"volume changes web1@0", "a number N from 1"},
		{"volume snapshot web1 --wait forever", "--wait must be one of"},
		{"volume resize web1 big", "is not a size"},
		{"volume limit web1 --rate 0", "is not a rate"},
		{"volume export image:debian file", "want volume:NAME or snapshot:NAME@N"},
		{"image promote debian/12 debian", "want image:NAME, volume:NAME or snapshot:NAME@N"},
		{"image promote web1 debian --scope everybody", "--scope"},
		{"snapshot rm web1", "want snapshot:NAME@N"},
	} {
		code, _, complaint := command(t, append(strings.Fields(x.line), "--data", t.TempDir())...)
		if code != 2 || !strings.Contains(complaint, x.want) {
			t.Errorf("%s: code %d, %s", x.line, code, complaint)
		}
	}
}
