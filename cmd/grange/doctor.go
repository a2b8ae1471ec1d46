package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/api"
)

type doctorCmd struct{}

// finding is one thing that the doctor looked at.
type finding struct {
	what string
	ok   bool
	text string
}

// Run looks at this machine, and at the node if one answers; it fails when
// something would stop a node from working.
func (c *doctorCmd) Run(ctx context.Context, app *cli, std stdio) error {
	findings := []finding{dataFinding(app.Data), ublkFinding()}
	var s api.Status
	if err := app.ask(ctx, "GET", "/api/status", nil, &s); err != nil {
		findings = append(findings, finding{"node", true, "not running: " + err.Error()})
	} else {
		findings = append(findings,
			finding{"node", s.Ready, cmp.Or(prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")},
			finding{"origin", s.Origin.State == "ok" || s.Origin.State == "read-only", s.Origin.State + prefixed(": ", s.Origin.Detail)},
			finding{"cache", !s.Cache.Full, fmt.Sprintf("%s of %s", humanBytes(s.Cache.Used), humanBytes(s.Cache.Quota))},
			finding{"farm", true, fmt.Sprintf("%d neighbours", len(s.Farm))})
	}
	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	bad := 0
	for _, f := range findings {
		mark := "ok"
		if !f.ok {
			mark = "BAD"
			bad++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.what, f.text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d findings need a look", bad, len(findings))
	}
	return nil
}

// prefixed is a text with a prefix, or nothing.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func dataFinding(dir string) finding {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return finding{"data folder", false, err.Error()}
	}
	f, err := os.CreateTemp(dir, "doctor-*")
	if err != nil {
		return finding{"data folder", false, err.Error()}
	}
	err = errors.Join(f.Close(), os.Remove(f.Name()))
	return finding{"data folder", err == nil, filepath.Clean(dir)}
}

// ublkFinding says which door volumes are served through here.
func ublkFinding() finding {
	if err := ublk.Probe(); err != nil {
		return finding{"ublk", true, "volumes are served over NBD: " + strings.TrimPrefix(err.Error(), "ublk: ")}
	}
	return finding{"ublk", true, "volumes are served as block devices"}
}
