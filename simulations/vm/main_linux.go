package vm

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// insideVariable tells a program that it runs in a guest.
const insideVariable = "GRANGE_GUEST"

// Inside reports whether this program runs in a guest.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Main runs the tests of a package in a guest, this very binary with its flags,
// and returns the exit status for TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(vm.Main(m, vm.Config{})) }
//
// The guest has the package's testdata, and what else c says; the program, its
// arguments, output and time are those of the tests. Variables of the
// environment that begin with GRANGE_ go along. When the flags choose none of
// the package's tests and benchmarks no guest boots. Fuzzing stays outside.
func Main(m *testing.M, c Config) int {
	if Inside() {
		return m.Run()
	}
	flag.Parse()
	code, err := runTests(context.Background(), m, c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	return code
}

func runTests(ctx context.Context, m *testing.M, c Config) (int, error) {
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	chosen, err := choosesAny(ctx, program)
	if err != nil {
		return 0, err
	}
	if !chosen {
		return m.Run(), nil
	}
	if c.Prepare != nil {
		dir, err := os.MkdirTemp("", "grange-guest-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		if err := c.Prepare(ctx, dir, &c); err != nil {
			return 0, fmt.Errorf("prepare a guest: %w", err)
		}
	}
	c.Binary, c.Output = program, os.Stdout
	c.Args = slices.DeleteFunc(slices.Clone(os.Args[1:]), forHost)
	c.Env = slices.Clone(c.Env)
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "GRANGE_") {
			c.Env = append(c.Env, kv)
		}
	}
	c.Env = append(c.Env, insideVariable+"=1")
	if _, err := os.Stat("testdata"); err == nil {
		files := map[string]string{"testdata": "testdata"}
		for to, from := range c.Files {
			files[to] = from
		}
		c.Files = files
	}
	// The tests in the guest end themselves first, and say where they hang.
	const bootMax, unlimited = 30 * time.Second, 24 * time.Hour
	c.Timeout = unlimited
	if d, err := time.ParseDuration(option("test.timeout")); err == nil && d > 0 {
		c.Timeout = d + bootMax
	}
	return Run(ctx, c)
}

// option is the value of a flag, empty when there is no such flag.
func option(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// forHost reports whether a flag names a file of this machine.
func forHost(arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	switch name {
	case "test.testlogfile", "test.outputdir", "test.gocoverdir", "test.coverprofile", "test.trace",
		"test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile":
		return true
	}
	return false
}

// choosesAny reports whether the flags choose tests or benchmarks to run in a
// guest.
func choosesAny(ctx context.Context, program string) (bool, error) {
	if option("test.list") != "" || option("test.fuzz") != "" || option("test.fuzzworker") == "true" {
		return false, nil
	}
	for _, kind := range []struct {
		pattern   string
		benchmark bool
	}{{option("test.run"), false}, {option("test.bench"), true}} {
		if kind.pattern == "" && kind.benchmark {
			continue
		}
		if strings.Contains(kind.pattern, "/") {
			return true, nil // subtests are not listed
		}
		list := exec.CommandContext(ctx, program, "-test.list", cmp.Or(kind.pattern, "."))
		list.Env = append(os.Environ(), insideVariable+"=1")
		out, err := list.Output()
		if err != nil {
			return false, fmt.Errorf("list the tests of %s: %w", program, err)
		}
		for line := range bytes.Lines(out) {
			if bytes.HasPrefix(line, []byte("Benchmark")) == kind.benchmark {
				return true, nil
			}
		}
	}
	return false, nil
}
