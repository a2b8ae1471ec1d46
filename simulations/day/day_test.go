package day

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/netns"
)

const (
	readme  = "../../README.md"
	section = "## An operator's day"
	// blockTimeout bounds what one block of commands takes on a busy machine.
	blockTimeout = 90 * time.Second
)

// step is a block of commands with the hosts that it is pasted on, or something that
// befalls them.
type step struct {
	line   int
	hosts  []string
	script string
	event  string
}

var (
	onHosts = regexp.MustCompile(`^# on (a|b|a and b)$`)
	befalls = regexp.MustCompile(`^<!-- (.*) -->$`)
)

// steps reads the section of the README.
func steps(t *testing.T) []step {
	t.Helper()
	f, err := os.Open(readme)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []step
	var block *step
	inside := false
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		switch on := onHosts.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "## "):
			inside = line == section
		case !inside:
		case block == nil && line == "```sh":
			block = &step{line: n}
		case block == nil:
			if m := befalls.FindStringSubmatch(line); m != nil {
				out = append(out, step{line: n, event: m[1]})
			}
		case line == "```":
			out, block = append(out, *block), nil
		case on != nil:
			block.hosts = strings.Split(on[1], " and ")
		default:
			block.script += line + "\n"
		}
	}
	if err := lines.Err(); err != nil || len(out) < 10 {
		t.Fatalf("%s: %v; %d steps in %q", readme, err, len(out), section)
	}
	return out
}

// TestAnOperatorsDay pastes each block of the README's section on the hosts that it
// names, as it stands.
func TestAnOperatorsDay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	network, err := netns.New(ctx, "day")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	hosts := map[string]*host{"a": newHost(t, network, dir, "a"), "b": newHost(t, network, dir, "b")}
	startStore(t, network, dir, hosts)
	events := map[string]func(t *testing.T){
		"the disk of a is lost": func(t *testing.T) {
			hosts["a"].paste(ctx, t, "systemctl kill grange; find /var/lib/grange -mindepth 1 -delete")
		},
		"the disk of b is full": func(t *testing.T) {
			hosts["b"].paste(ctx, t, "dd if=/dev/zero of=/var/lib/grange-disk/ballast bs=1M status=none || true")
		},
		"the disk of b is freed": func(t *testing.T) { hosts["b"].paste(ctx, t, "rm /var/lib/grange-disk/ballast") },
	}
	for _, s := range steps(t) {
		if s.event != "" {
			event, ok := events[s.event]
			if !ok {
				t.Fatalf("%s:%d: nobody knows how %q comes about", filepath.Base(readme), s.line, s.event)
			}
			t.Logf("line %d: %s", s.line, s.event)
			event(t)
			continue
		}
		if len(s.hosts) == 0 {
			t.Fatalf("%s:%d: the block says on no host", filepath.Base(readme), s.line)
		}
		for _, name := range s.hosts {
			t.Logf("line %d, on %s:\n%s", s.line, name, hosts[name].paste(ctx, t, s.script))
		}
	}
}
