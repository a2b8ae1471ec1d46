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
	"github.com/grangemesh/grange/node/volumes"
)

type doctorCmd struct{}

// finding is one thing that the doctor looked at.
type finding struct {
	what string
	mark mark
	text string
}

// mark is how a finding is meant.
type mark string

const (
	good mark = "ok"
	note mark = "--" // no harm, but no part of it either
	bad  mark = "BAD"
)

func goodIf(ok bool) mark {
	if ok {
		return good
	}
	return bad
}

// Run looks at this machine, and at the node if one answers; it fails when
// something would stop a node from working.
func (c *doctorCmd) Run(ctx context.Context, app *cli, std stdio) error {
	findings := []finding{dataFinding(app.Data)}
	var s api.Status
	if err := app.ask(ctx, "GET", "/api/status", nil, &s); err != nil {
		findings = append(findings, disksFinding(disksOfMine()), finding{"node", note, "does not answer here: " + err.Error()})
	} else {
		findings = append(findings, disksFinding(s.Disks),
			finding{"node", goodIf(s.Ready), cmp.Or(prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")},
			finding{"membership", goodIf(s.Self.Revoked.IsZero()), cmp.Or(revoked(s.Self), string(s.Self.Role))},
			finding{"origin", goodIf(originGood(s.Origin)), s.Origin.State + prefixed(": ", s.Origin.Detail)},
			finding{"cache", goodIf(!s.Cache.Full), fmt.Sprintf("%s of %s", humanBytes(s.Cache.Used), humanBytes(s.Cache.Quota))},
			finding{"farm", good, count(len(s.Farm), "neighbour")},
			volumesFinding(ctx, app))
	}
	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	wrong := 0
	for _, f := range findings {
		if f.mark == bad {
			wrong++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.mark, f.what, f.text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings need a look", wrong, len(findings))
	}
	return nil
}

// volumesFinding names the volumes that the node can't serve.
func volumesFinding(ctx context.Context, app *cli) finding {
	var list []api.Volume
	if err := app.ask(ctx, "GET", "/api/volumes", nil, &list); err != nil {
		return finding{"volumes", bad, err.Error()}
	}
	var failed []string
	for _, v := range list {
		if v.State == string(volumes.StateFailed) {
			failed = append(failed, v.Name)
		}
	}
	if len(failed) > 0 {
		return finding{"volumes", bad, fmt.Sprintf("%s can't be served; `grange volume show NAME` says why", strings.Join(failed, ", "))}
	}
	return finding{"volumes", good, fmt.Sprintf("%d here", len(list))}
}

// prefixed is a text with a prefix, or nothing.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func dataFinding(dir string) finding {
	if !fileExists(dir) {
		return finding{"data folder", note, filepath.Clean(dir) + " is not there; a node makes it"}
	}
	f, err := os.CreateTemp(dir, "doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return finding{"data folder", bad, err.Error()}
	}
	return finding{"data folder", good, filepath.Clean(dir)}
}

// disksOfMine says how a node would serve volumes that runs as this process does.
func disksOfMine() api.Disks {
	if err := ublk.Probe(); err != nil {
		return api.Disks{Detail: err.Error()}
	}
	d := api.Disks{Served: true}
	if err := becomeFlusher(); err != nil {
		d.Detail = err.Error()
	}
	return d
}

// disksFinding says which door volumes are served through here.
func disksFinding(d api.Disks) finding {
	switch {
	case !d.Served:
		return finding{"ublk", note, "volumes are served over NBD: " + strings.TrimPrefix(d.Detail, "ublk: ")}
	case d.Detail != "":
		return finding{"ublk", note, "volumes are served as block devices; " + d.Detail}
	}
	return finding{"ublk", good, "volumes are served as block devices"}
}
