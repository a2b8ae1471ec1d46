package planner_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/soak"
)

// planDir is where the product's Member lies.
const planDir = "../../node/fetch/plan"

// TestMutations: a Member that is wrong in one place fails the scenario that is about it.
func TestMutations(t *testing.T) {
	for what, m := range map[string]struct{ file, is, becomes, scenario string }{
		"a lead that never asks the ranks behind":       {"job.go", "if behind {", "if behind && false {", "TestScenarios/views"},
		"a guest that forgets the budget":               {"job.go", "|| !j.m.Has(j.now, j.need())", "", "TestScenarios/faults"},
		"a lead that fails, and nobody takes its place": {"job.go", "!ok || j.count >= leadsAsked", "!ok || j.count >= 1", "TestScenarios/faults"},
		"a breaker that forgets":                        {"breaker.go", "b.failed[p] = failure{now.Add(span), span, false}", "", "TestScenarios/breaker"},
		"a breaker that is as patient each time":        {"breaker.go", "2*f.span", "f.span", "TestScenarios/breaker"},
		"a name that one lead's word is enough for":     {"look.go", "agreeing = 2", "agreeing = 1", "TestScenarios/names"},
		"a lead of a name that nobody follows":          {"look.go", "order[:min(len(order), leadsAsked)]", "order[:min(len(order), agreeing)]", "TestScenarios/names"},
		"a liar that is believed again":                 {"member.go", "first = !m.Aside(p, now, lieAside)", "first = true", "TestRushes/liars"},
		"a slow member that is waited for":              {"patience.go", "other != \"\" && !slices", "false && !slices", "TestRushes/slow"},
		"a lead elsewhere that fails, and none instead": {"job.go", "announcersAsked || passed", "1 || passed", "TestRushes/partition"},
		"a lead that does not look what the last read":  {"order.go", "v.now.Sub(e.took) < takeOver", "false", "TestRushes/brownout"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path, err := filepath.Abs(filepath.Join(planDir, m.file))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), m.is); n != 1 {
				t.Fatalf("%s has %q %d times, which is to be changed once", m.file, m.is, n)
			}
			dir := t.TempDir()
			mutant, overlay := filepath.Join(dir, m.file), filepath.Join(dir, "overlay.json")
			list, err := json.Marshal(map[string]any{"Replace": map[string]string{path: mutant}})
			if err == nil {
				err = os.WriteFile(overlay, list, 0o600)
			}
			if err == nil {
				err = os.WriteFile(mutant, []byte(strings.Replace(string(b), m.is, m.becomes, 1)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			test, scenario, _ := strings.Cut(m.scenario, "/")
			cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-ldflags=-s -w", "-overlay", overlay, "-run", "^"+test+"$/^"+scenario+"$", ".")
			cmd.Env = append(os.Environ(), soak.Off)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+m.scenario) {
				t.Errorf("the scenario %s does not notice: %v\n%s", m.scenario, err, out)
			}
		})
	}
}
