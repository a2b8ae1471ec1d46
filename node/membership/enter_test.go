package membership

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestFarmOfAnotherMember: a farm that a folder is not of is not taken in silence.
func TestFarmOfAnotherMember(t *testing.T) {
	var log bytes.Buffer
	c := Entry{Dir: t.TempDir(), Farm: "lyon", Now: time.Now, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, x := range []struct {
		farm    string
		ignored bool
	}{{"lyon", false}, {"", false}, {"lyon", false}, {"oslo", true}} {
		log.Reset()
		c.Farm = x.farm
		m, _, err := c.Enter(t.Context())
		if err != nil || m.Chain.Identity().Farm != "lyon" {
			t.Fatalf("farm %q, %v", m.Chain.Identity().Farm, err)
		}
		if said := strings.Contains(log.String(), "--farm is ignored"); said != x.ignored {
			t.Errorf("%q: %s", x.farm, log.String())
		}
	}
}

func TestFarmDefault(t *testing.T) {
	c := Entry{Dir: t.TempDir(), FarmDefault: "main", Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	if m, _, err := c.Enter(t.Context()); err != nil || m.Chain.Identity().Farm != "main" {
		t.Errorf("farm %q, %v", m.Chain.Identity().Farm, err)
	}
}
