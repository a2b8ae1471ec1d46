package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestFarmOfAnotherMember: a farm that a folder is not of is not taken in silence.
func TestFarmOfAnotherMember(t *testing.T) {
	var log bytes.Buffer
	c := Config{Dir: t.TempDir(), Farm: "lyon", Now: time.Now, Log: slog.New(slog.NewTextHandler(&log, nil))}
	identity := trust.NewPrivateKey()
	for _, x := range []struct {
		farm    string
		ignored bool
	}{{"lyon", false}, {"", false}, {"lyon", false}, {"oslo", true}} {
		log.Reset()
		c.Farm = x.farm
		m, err := c.enter(t.Context(), identity)
		if err != nil || m.Chain.Identity().Farm != "lyon" {
			t.Fatalf("farm %q, %v", m.Chain.Identity().Farm, err)
		}
		if said := strings.Contains(log.String(), "--farm is ignored"); said != x.ignored {
			t.Errorf("%q: %s", x.farm, log.String())
		}
	}
}

func TestFarmDefault(t *testing.T) {
	c := Config{Dir: t.TempDir(), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	if m, err := c.enter(t.Context(), trust.NewPrivateKey()); err != nil || m.Chain.Identity().Farm != FarmDefault {
		t.Errorf("farm %q, %v", m.Chain.Identity().Farm, err)
	}
}

// TestSecondNode is kept out of a folder, which is ready for work then.
func TestSecondNode(t *testing.T) {
	first := &Node{cfg: Config{Dir: t.TempDir()}}
	if err := first.openDir(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := &Node{cfg: first.cfg}
	if err := second.openDir(t.Context()); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "another grange has it open") {
		t.Errorf("a second node: %v", err)
	}
	if err := first.unlock(); err != nil {
		t.Fatal(err)
	}
	if err := second.openDir(t.Context()); err != nil {
		t.Errorf("after the first: %v", err)
	}
	if err := second.unlock(); err != nil {
		t.Error(err)
	}
}
