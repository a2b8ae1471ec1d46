//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// hub is a node and what is asked of its instances.
type hub struct {
	*served
	data string
}

// hubOf starts a node, and returns once its hub takes commands.
func hubOf(t *testing.T, flags ...string) hub {
	t.Helper()
	s := serveNode(t, flags...)
	h := hub{s, filepath.Join(s.dir, "data")}
	until(t, "a hub", func() bool {
		code, _, _ := command(t, "instance", "deprovision", "none", "--data", h.data)
		return code == 0
	})
	return h
}

// does runs an instance command.
func (h hub) does(t *testing.T, want string, args ...string) (out string) {
	t.Helper()
	code, out, complaint := command(t, append([]string{"instance", args[0], "--data", h.data}, args[1:]...)...)
	if code != 0 || !strings.Contains(out, want) {
		t.Fatalf("instance %q: code %d, %q, want %q; %s", args, code, out, want, complaint)
	}
	return out
}

// TestLifeOfAnInstance: its data outlive each of its ends but the last.
func TestLifeOfAnInstance(t *testing.T) {
	h := hubOf(t)
	starts := filepath.Join(h.data, "instances", "web1", "data", "starts")
	started := func(n int) func() bool {
		return func() bool {
			b, _ := os.ReadFile(starts)
			return strings.Count(string(b), "web1\n") == n
		}
	}
	workload := []string{"--no-port", "--ready", "none", "--", "sh", "-c", `echo "$0" >> starts; echo said $(wc -l < starts) times; exec sleep 1000`, "{name}"}
	h.does(t, "web1 is provisioned\n", append([]string{"provision", "web1"}, workload...)...)
	until(t, "a start", started(1))
	h.does(t, "web1 is provisioned\n", append([]string{"provision", "web1"}, workload...)...) // as it is
	h.does(t, "provisioned", "ls")
	h.does(t, "command   sh -c ", "show", "web1")
	h.does(t, "no port   yes", "show", "web1")
	until(t, "its first words", func() bool { return h.does(t, "", "logs", "web1") == "said 1 times\n" })
	if last := h.does(t, "", "logs", "web1", "--last", "6B"); last != "times\n" {
		t.Errorf("%q", last)
	}

	h.does(t, "web1 is hibernated\n", "hibernate", "web1")
	h.does(t, "web1 is hibernated\n", "hibernate", "web1")
	h.does(t, "says how far it is\n", "wake", "web1", "--no-wait")
	until(t, "another start", started(2))
	h.follows(t)
	until(t, "that it is awake", func() bool { return strings.Contains(h.does(t, "", "show", "web1"), "provisioned") })

	h.does(t, "web1 is unprovisioned\n", "deprovision", "web1")
	if _, err := os.Stat(filepath.Dir(starts)); err == nil {
		t.Error("its data are here still")
	}
	if out := h.does(t, "", "ls"); strings.Contains(out, "web1") {
		t.Errorf("%s", out)
	}
	h.does(t, "unprovisioned", "ls", "--all")
	h.does(t, "put away  2", "show", "web1")
	var v api.Instance
	if err := json.Unmarshal([]byte(h.does(t, "", "provision", "web1", "--json")), &v); err != nil || v.State != "provisioned" || v.Operation != "" || v.Epoch != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	until(t, "a start over what it had", started(3))
	if err := json.Unmarshal([]byte(h.does(t, "", "obliterate", "web1", "--json")), &v); err != nil || v.State != "unprovisioned" || v.Operation != "" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, absent := range []string{"obliterate", "deprovision"} {
		h.does(t, "web1 is not on this node", absent, "web1")
	}
	for _, lost := range []string{"show", "logs", "hibernate", "wake", "provision"} {
		if code, _, complaint := command(t, "instance", lost, "web1", "--data", h.data); code != 1 || !strings.Contains(complaint, "not found") {
			t.Errorf("%s: code %d, %s", lost, code, complaint)
		}
	}
	h.signal(t, syscall.SIGTERM)
	h.ends(t)
}

// follows reads a log while it is written, until it is told to end, which is no failure.
func (h hub) follows(t *testing.T) {
	t.Helper()
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	var complaint bytes.Buffer
	std := ask.Stdio{In: strings.NewReader(""), Out: &endAt{line: "said 2 times\n", end: end}, Err: &complaint}
	if code := run(ctx, []string{"instance", "logs", "web1", "-f", "--data", h.data}, std, nil); code != 0 || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("logs -f: code %d, %s", code, &complaint)
	}
}

// endAt is a reader of lines that has enough behind one.
type endAt struct {
	read []byte
	line string
	end  func()
}

func (r *endAt) Write(p []byte) (int, error) {
	if r.read = append(r.read, p...); strings.HasSuffix(string(r.read), r.line) {
		r.end()
	}
	return len(p), nil
}

// TestProvisionThatFails says why, and one that is given up is cancelled.
func TestProvisionThatFails(t *testing.T) {
	h := hubOf(t, "--instance-max", "1")
	code, out, complaint := command(t, "instance", "provision", "bad", "--no-port", "--data", h.data, "--", "/no/such/program")
	if code != 1 || out != "" || !strings.Contains(complaint, "/no/such/program") {
		t.Errorf("code %d, %s%s", code, out, complaint)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			w.Header().Set("X-Cancelled", r.URL.Path)
			complaint = r.URL.Path
		case strings.HasSuffix(r.URL.Path, "/events"):
			cancel()
			<-r.Context().Done()
		default:
			_, _ = w.Write([]byte(`{"name": "web1", "state": "provisioning", "operation": "7"}`))
		}
	}))
	code = run(ctx, []string{"instance", "provision", "web1", "--data", data}, ask.Stdio{In: strings.NewReader(""), Out: &stdout, Err: &stderr}, nil)
	if code != 1 || complaint != "/api/operations/7" || !strings.Contains(stderr.String(), "provision web1: cancelled") {
		t.Errorf("code %d, %s, %s", code, complaint, &stderr)
	}
	ctx, cancel = context.WithCancel(t.Context())
	data = serveAt(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	stderr.Reset()
	code = run(ctx, []string{"instance", "wake", "web1", "--data", data}, ask.Stdio{In: strings.NewReader(""), Out: &stdout, Err: &stderr}, nil)
	if code != 1 || !strings.Contains(stderr.String(), "wake web1: it goes on") {
		t.Errorf("code %d, %s", code, &stderr)
	}
	h.does(t, "web1 is provisioned", "provision", "web1", "--no-port", "--", "sleep", "1000")
	if code, _, complaint := command(t, "instance", "provision", "web2", "--no-port", "--data", h.data, "--", "sleep", "1000"); code != 1 || !strings.Contains(complaint, "1 instances, as many as it may") {
		t.Errorf("code %d, %s", code, complaint)
	}
	h.does(t, "web1 is unprovisioned", "obliterate", "web1")
	h.signal(t, syscall.SIGTERM)
	h.ends(t)
}

// TestWhatProvisionRefuses before the node is asked, and what it asks for otherwise.
func TestWhatProvisionRefuses(t *testing.T) {
	for _, x := range []struct{ line, want string }{
		{"a/b -- x", "name \"a/b\""}, {"web1 --no-port", "needs a command"}, {"web1 --command x -- y", "both in --command and behind --"}, {"web1 --from debian -- x", "want tree:NAME"},
		{"web1 --runtime docker", "--runtime must be one of"}, {"web1 --rlimit files=3 -- x", "want NAME=N"}, {"web1 --ready 80 -- x", "want tcp, http:/PATH, log:TEXT or none"}, {"web1 --env A -- x", "want NAME=VALUE"},
		{"web1 --idle 0s -- x", "is not a time"}, {"web1 --memory much -- x", "is not a size"}, {"web1 --no-port --idle 1h -- x", "without a port"}, {"web1 -c x", "unknown flag -c"}, {"web1 --key k -- x", "are for a vm"}, {"vm1 --lazy --from image:debian", "are for a process"},
	} {
		code, _, complaint := command(t, append([]string{"instance", "provision", "--data", t.TempDir()}, strings.Fields(x.line)...)...)
		if code != 2 || !strings.Contains(complaint, x.want) {
			t.Errorf("%s: code %d, %s", x.line, code, complaint)
		}
	}
	var asked bytes.Buffer
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = asked.ReadFrom(r.Body)
		_, _ = w.Write([]byte(`{"name": "web1", "state": "provisioned", "port": 20000}`))
	}))
	code, out, complaint := command(t, "instance", "provision", "web1", "--data", data, "--from", "tree:site", "--runtime", "process", "--env", "A=1,2", "--env", "B={port}", "--user", "nobody", "--rlimit", "nofile=9", "--rlimit", "core=0",
		"--config-file", "/etc/x", "--ready", "http:/up", "--ready-timeout", "90s", "--grace", "2m", "--idle", "7d", "--compact", "a && b", "--memory", "1G", "--disk", "2G", "--mesh", "--takeover", "--command", "x -p {port}")
	want := `{"runtime":"process","from":"tree:site","command":["/bin/sh","-c","exec x -p {port}"],"env":["A=1,2","B={port}"],"user":"nobody","rlimits":["nofile=9","core=0"],"config":"/etc/x","ready":"http:/up",` +
		`"ready_seconds":90,"grace_seconds":120,"compact":["/bin/sh","-c","a \u0026\u0026 b"],"idle_seconds":604800,"memory":1073741824,"disk":2147483648,"mesh":true,"takeover":true}`
	if asked.String() != want || code != 0 || out != "web1 is provisioned, port 20000\n" {
		t.Errorf("code %d, %s%s, %s, want %s", code, out, complaint, &asked, want)
	}
	asked.Reset()
	if command(t, "instance", "provision", "vm1", "--data", data, "--from", "image:debian", "--cpus", "2", "--key", "ssh-ed25519 A,B c", "--ready", "log:login:", "--kernel", "/k", "--initrd", "/i", "--append", "a b"); asked.String() != `{"from":"image:debian","ready":"log:login:","cpus":2,"keys":["ssh-ed25519 A,B c"],"kernel":"/k","initrd":"/i","append":"a b"}` {
		t.Errorf("%s", &asked)
	}
	asked.Reset()
	if command(t, "instance", "provision", "web1", "--data", data, "--no-port", "--", "x", "-c", "--no-wait", "--", "a,b"); asked.String() != `{"command":["x","-c","--no-wait","--","a,b"],"no_port":true}` {
		t.Errorf("%s", &asked)
	}
	asked.Reset()
	if command(t, "instance", "provision", "web1", "--data", data); asked.String() != `{}` {
		t.Errorf("%s", &asked)
	}
}
