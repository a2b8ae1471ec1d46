package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/doctor"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
)

type doctorCmd struct{}

// Run looks at this machine, as a node would start here by environment and config file,
// and at the node if one answers; it fails when something stops a node from working.
func (*doctorCmd) Run(ctx context.Context, c *cli, app *ask.Node, std ask.Stdio) error {
	findings, err := c.findings(ctx, app)
	if err != nil {
		return err
	}
	if err := report(app, std, findings); err != nil {
		return err
	}
	wrong := 0
	for _, f := range findings {
		if f.Mark == doctor.Bad {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings need a look", wrong, len(findings))
	}
	return nil
}

// findings are of this machine, if the node is of it, and of the node, if it answers.
func (c *cli) findings(ctx context.Context, app *ask.Node) (findings []doctor.Finding, err error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	_, s, away := app.Status(ctx)
	if app.Remote == "" {
		findings = c.examine(ctx, s, away)
		if away != nil {
			findings = append(findings, disksFinding(disksOfMine()), doctor.Note.Of("node", "does not answer here: "+away.Error()))
		}
	}
	switch {
	case away == nil:
		findings = append(findings, examineNode(s)...)
	case app.Remote != "":
		return findings, away
	}
	return findings, ctx.Err()
}

// doctorTimeout bounds all that the doctor asks together.
const doctorTimeout = time.Minute

// report prints findings: what is found may be long, so it is not cut.
func report(app *ask.Node, std ask.Stdio, findings []doctor.Finding) error {
	if app.JSON {
		return json.NewEncoder(std.Out).Encode(findings)
	}
	for _, f := range findings {
		if _, err := fmt.Fprintln(std.Out, terminal.Wrap(fmt.Sprintf("%-4s %-13s %s", f.Mark, f.What, f.Text), terminal.Width(std.Out))); err != nil {
			return err
		}
	}
	return nil
}

// examine looks at this machine, as a node would start here by environment and config
// file, with the status of the node, or why there is none.
func (c *cli) examine(ctx context.Context, s api.Status, away error) []doctor.Finding {
	std := ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}
	var would cli
	parser, err := newParser(&would, std)
	if err == nil {
		_, err = parser.Parse([]string{"node", "--data", c.Data, "--config", string(c.Config)})
	}
	if err != nil {
		return []doctor.Finding{doctor.Bad.Of("config", err.Error())}
	}
	w := &would.Node
	settings := doctor.Settings{
		Data: c.Data, Quota: int64(w.Quota), Origin: strings.Join(w.Origin[:min(len(w.Origin), 1)], ""), API: w.API, FarmBind: w.FarmBind, NBD: w.NBD, Listen: w.Listen, FarmJoin: w.FarmJoin,
		Open: originOpener{log: slog.New(slog.DiscardHandler)}.openURL, Timeout: statusTimeout,
	}
	out := settings.Examine(ctx, s, away)
	if _, err := w.doors(c.Data); err != nil {
		out = append(out, doctor.Bad.Of("nbd", err.Error()))
	}
	return out
}

func examineNode(s api.Status) []doctor.Finding {
	out := []doctor.Finding{
		doctor.GoodIf(s.Ready).Of("node", cmp.Or(ask.Prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")),
		doctor.GoodIf(s.Self.Revoked.IsZero()).Of("membership", cmp.Or(revoked(s.Self), string(s.Self.Role))),
		doctor.GoodIf(originGood(s.Origin) || s.Seed != nil).Of("origin", s.Origin.State+ask.Prefixed(": ", s.Origin.Detail)),
		doctor.GoodIf(!s.Cache.Full).Of("cache", fmt.Sprintf("%s of %s", units.Bytes(s.Cache.Used), units.Bytes(s.Cache.Quota))+beyond(s.Cache)),
		doctor.GoodIf(s.Neighbourhood.State != node.FarmCutOff).Of("farm", neighbours(s)),
	}
	if s.Seed == nil {
		out = append(out, disksFinding(s.Disks), volumesFinding(s))
	}
	for _, w := range s.Warnings {
		out = append(out, doctor.Bad.Of(w.About, w.Text))
	}
	return out
}

func volumesFinding(s api.Status) doctor.Finding {
	if len(s.Failing) > 0 {
		return doctor.Bad.Of("volumes", fmt.Sprintf("%s can't be served, or can't be written to; `grange volume show NAME` says why", strings.Join(s.Failing, ", ")))
	}
	return doctor.Good.Of("volumes", fmt.Sprintf("%d here", s.Volumes))
}

func beyond(c api.Cache) string {
	if c.Limit >= c.Quota {
		return ""
	}
	return fmt.Sprintf(", of which the disk has room for %s", units.Bytes(c.Limit))
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

func disksFinding(d api.Disks) doctor.Finding {
	switch {
	case !d.Served:
		return doctor.Note.Of("ublk", "volumes are served over NBD: "+strings.TrimPrefix(d.Detail, "ublk: "))
	case d.Detail != "":
		return doctor.Note.Of("ublk", "volumes are served as block devices; "+d.Detail)
	}
	return doctor.Good.Of("ublk", "volumes are served as block devices")
}
