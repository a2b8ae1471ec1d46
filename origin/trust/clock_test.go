package trust

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// TestOneToleranceForClocks: a certificate, a record and a statement that were made just
// now are believed by a clock that is clockSkew behind, and by none that is further; the
// error has both times, and what to set.
func TestOneToleranceForClocks(t *testing.T) {
	w := newWorld(t)
	record, err := w.founder.Seal(Envelope{Kind: content.KindImage, Name: "debian", Version: 1, SignedAt: epoch(), Commit: NewCommit()})
	if err != nil {
		t.Fatal(err)
	}
	statement, err := w.founder.State(Statement{Kind: content.KindImage, Name: "debian", Version: 1, SeenAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.founder.Issue(Identity{NewPrivateKey().Public(), RoleNode, "main"}, epoch())
	if err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func(now time.Time) error{
		"certificate": func(now time.Time) error { _, err := w.verifier.Verify(chain, now); return err },
		"record":      func(now time.Time) error { _, err := w.verifier.Open(record, now, now); return err },
		"statement":   func(now time.Time) error { _, err := w.verifier.OpenStatement(statement, now); return err },
	} {
		if err := open(epoch().Add(-clockSkew)); err != nil {
			t.Errorf("%s, at the limit: %v", what, err)
		}
		now := epoch().Add(-clockSkew - time.Second)
		err := open(now)
		if !errors.Is(err, content.ErrForbidden) {
			t.Errorf("%s, over the limit: %v", what, err)
			continue
		}
		for _, word := range []string{epoch().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), "clock", clockSkew.String(), "timedatectl"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", what, err, word)
			}
		}
	}
	if err := w.verifier.link(chain[0], chain[0].Issuer, chain[0].NotAfter.Add(clockSkew), epoch()); err != nil {
		t.Errorf("expired within the limit: %v", err)
	}
}
