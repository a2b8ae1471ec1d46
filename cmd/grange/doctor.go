package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
)

type doctorCmd struct{}

// finding is one thing that the doctor looked at.
type finding struct {
	What string `json:"what"`
	Mark mark   `json:"mark"`
	Text string `json:"text"`
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

// Run looks at this machine, as a node would start here by environment and config file,
// and at the node if one answers; it fails when something stops a node from working.
func (c *doctorCmd) Run(ctx context.Context, app *cli, std stdio) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	_, s, err := app.status(ctx)
	var findings []finding
	if app.remote() == "" {
		findings = app.examine(ctx, s, err)
		if err != nil {
			findings = append(findings, disksFinding(disksOfMine()), finding{"node", note, "does not answer here: " + err.Error()})
		}
	}
	switch {
	case err == nil:
		findings = append(findings, app.examineNode(ctx, s)...)
	case app.remote() != "":
		findings = append(findings, finding{"node", bad, err.Error()})
	}
	if err := report(app, std, findings); err != nil {
		return err
	}
	wrong := 0
	for _, f := range findings {
		if f.Mark == bad {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings need a look", wrong, len(findings))
	}
	return nil
}

// doctorTimeout bounds all that the doctor asks together.
const doctorTimeout = time.Minute

// report prints findings: what is found may be long, so it is not cut.
func report(app *cli, std stdio, findings []finding) error {
	if app.JSON {
		return json.NewEncoder(std.out).Encode(findings)
	}
	for _, f := range findings {
		if _, err := fmt.Fprintln(std.out, terminal.Wrap(fmt.Sprintf("%-4s %-12s %s", f.Mark, f.What, f.Text), terminal.Width(std.out))); err != nil {
			return err
		}
	}
	return nil
}

// examineNode looks at a node that answers.
func (c *cli) examineNode(ctx context.Context, s api.Status) []finding {
	return []finding{
		disksFinding(s.Disks),
		{"node", goodIf(s.Ready), cmp.Or(prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")},
		{"membership", goodIf(s.Self.Revoked.IsZero()), cmp.Or(revoked(s.Self), string(s.Self.Role))},
		{"origin", goodIf(originGood(s.Origin)), s.Origin.State + prefixed(": ", s.Origin.Detail)},
		{"cache", goodIf(!s.Cache.Full), fmt.Sprintf("%s of %s", humanBytes(s.Cache.Used), humanBytes(s.Cache.Quota)) + beyond(s.Cache)},
		{"farm", goodIf(s.Neighbourhood.State != node.FarmCutOff), neighbours(s)},
		volumesFinding(s),
	}
}

// volumesFinding names the volumes that want a look.
func volumesFinding(s api.Status) finding {
	if len(s.Failing) > 0 {
		return finding{"volumes", bad, fmt.Sprintf("%s can't be served, or can't be written to; `grange volume show NAME` says why", strings.Join(s.Failing, ", "))}
	}
	return finding{"volumes", good, fmt.Sprintf("%d here", s.Volumes)}
}

// beyond says that the disk has no room for a cache's quota.
func beyond(c api.Cache) string {
	if c.Limit >= c.Quota {
		return ""
	}
	return fmt.Sprintf(", of which the disk has room for %s", humanBytes(c.Limit))
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
