//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/grangemesh/grange/cmd/grange/ask"
)

// forPrometheus is where alerts and the dashboard are.
const forPrometheus = "packaging/prometheus"

// metrics are what a node's /metrics says.
func (s *served) metrics(t *testing.T) string {
	t.Helper()
	to, err := (&ask.Node{Data: filepath.Join(s.dir, "data")}).Client()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := to.Copy(t.Context(), &text, "/metrics"); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// promtool runs it, and fails the test if it finds anything.
func promtool(t *testing.T, in io.Reader, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir, cmd.Stdin = forPrometheus, in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v: %s", args, err, out)
	}
}

// TestAlertsAndDashboardAskForWhatThereIs: each metric that they name two nodes of a farm
// have that do what nodes do, and what these have Prometheus finds nothing amiss with.
func TestAlertsAndDashboardAskForWhatThereIs(t *testing.T) {
	all := farmOf(t, 2)
	for _, s := range all {
		defer s.signal(t, syscall.SIGTERM)
	}
	all[0].well(t, "image import debian "+noise(t, 1))
	all[0].well(t, "origin gc")
	all[0].well(t, "origin verify")
	all[1].well(t, "volume create web1 --from image:debian")
	openQEMU(t, filepath.Join(all[1].dir, "data", "nbd.sock"), "web1").do(t, "read 0 1M")
	var known strings.Builder
	for _, s := range all {
		text := s.metrics(t)
		promtool(t, strings.NewReader(text), "check", "metrics")
		known.WriteString("\n" + text)
	}
	word := regexp.MustCompile(`\b(grange|process)_[a-z_]+\b`)
	for _, file := range []string{"grange.rules.yaml", "grafana.json"} {
		b, err := os.ReadFile(filepath.Join(forPrometheus, file))
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, name := range word.FindAllString(string(b), -1) {
			names[name] = true
		}
		if len(names) < 20 {
			t.Errorf("%s names %d metrics alone", file, len(names))
		}
		for name := range names {
			if !regexp.MustCompile(`\n` + name + `[{ ]`).MatchString(known.String()) {
				t.Errorf("%s asks for %s, which no node has", file, name)
			}
		}
	}
}

// TestAlertsFireWhenTheyShould, and say what has happened, what it means to users, and what to run.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	promtool(t, nil, "check", "rules", "grange.rules.yaml")
	promtool(t, nil, "test", "rules", "grange.rules_test.yaml")
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert               string
				Labels, Annotations map[string]string
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(forPrometheus, "grange.rules.yaml"))
	if err == nil {
		err = yaml.Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	tested, err := os.ReadFile(filepath.Join(forPrometheus, "grange.rules_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			for _, what := range []string{"summary", "description", "command"} {
				if len(r.Annotations[what]) < 10 {
					t.Errorf("%s: its %s is %q", r.Alert, what, r.Annotations[what])
				}
			}
			if !strings.Contains(string(tested), `alertname="`+r.Alert+`"`) {
				t.Errorf("no test fires %s", r.Alert)
			}
			for _, line := range regexp.MustCompile(`\bgrange ((?:[a-z]+ ?){1,2})`).FindAllStringSubmatch(r.Annotations["command"], -1) {
				knows(t, strings.Fields(line[1]))
			}
		}
	}
}

// knows fails the test unless there is a command of that name, with arguments or without.
func knows(t *testing.T, words []string) {
	t.Helper()
	for _, leaf := range leaves(t) {
		name := strings.Fields(strings.TrimPrefix(leaf.FullPath(), "grange "))
		if name[0] == words[0] && (len(name) == 1 || len(words) > 1 && name[1] == words[1]) {
			return
		}
	}
	t.Errorf("there is no command %q", words)
}

// TestDashboardIsWhole: its panels have titles, places that do not overlap, and questions that Prometheus takes.
func TestDashboardIsWhole(t *testing.T) {
	var board struct {
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
	}
	b, err := os.ReadFile(filepath.Join(forPrometheus, "grafana.json"))
	if err == nil {
		err = json.Unmarshal(b, &board)
	}
	if err != nil {
		t.Fatal(err)
	}
	type rule struct{ Record, Expr string }
	type group struct {
		Name  string
		Rules []rule
	}
	asks := group{Name: "asked"}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range board.Panels {
		if p.Title == "" || ids[p.ID] || p.Type != "row" && len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%+v", p)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[at] != "" {
					t.Fatalf("%q lies on %q", p.Title, taken[at])
				}
				taken[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			asks.Rules = append(asks.Rules, rule{fmt.Sprint("asked:", len(asks.Rules)), strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	text, err := yaml.Marshal(map[string][]group{"groups": {asks}})
	file := filepath.Join(t.TempDir(), "asked.yaml")
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, nil, "check", "rules", file)
}
