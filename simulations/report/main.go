// Command report reads the events of `go test -json` and prints what a person
// wants of them: failures whole, a line a package, the slowest tests, and the
// count of tests.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// slowest is how many of the slowest tests are named.
const slowest = 15

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
	ImportPath                    string
}

type result struct {
	name    string
	seconds float64
}

type report struct {
	out             io.Writer
	output          map[string][]string // of tests and packages that have not ended
	tests           []result
	passed, failed  int
	skipped         int
	packagesFailing []string
}

func main() {
	r := report{out: os.Stdout, output: map[string][]string{}}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(r.out, lines.Text()) // what the go command says itself
			continue
		}
		r.add(e)
	}
	r.end()
	if r.failed > 0 || len(r.packagesFailing) > 0 || lines.Err() != nil {
		os.Exit(1)
	}
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			key = e.ImportPath + " "
		}
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		r.finish(key, e)
	case "build-fail":
		fmt.Fprint(r.out, strings.Join(r.output[e.ImportPath+" "], ""))
	}
}

func (r *report) finish(key string, e event) {
	if e.Action == "fail" {
		fmt.Fprint(r.out, strings.Join(r.output[key], ""))
	}
	delete(r.output, key)
	if e.Test == "" {
		if e.Action == "fail" {
			r.packagesFailing = append(r.packagesFailing, e.Package)
		}
		fmt.Fprintf(r.out, "%-4s %-60s %7.1f s\n", e.Action, e.Package, e.Elapsed)
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
	case "skip":
		r.skipped++
	}
	if !strings.Contains(e.Test, "/") {
		r.tests = append(r.tests, result{e.Package + " " + e.Test, e.Elapsed})
	}
}

func (r *report) end() {
	slices.SortFunc(r.tests, func(a, b result) int { return cmp.Compare(b.seconds, a.seconds) })
	fmt.Fprintln(r.out, "\nslowest:")
	for _, t := range r.tests[:min(slowest, len(r.tests))] {
		fmt.Fprintf(r.out, "%7.1f s  %s\n", t.seconds, t.name)
	}
	for _, p := range r.packagesFailing {
		fmt.Fprintln(r.out, "FAIL", p)
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}
