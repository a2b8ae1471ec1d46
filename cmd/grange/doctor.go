package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// doctorWarns is what doctor exits with where something is amiss and the node works, until it is needed.
const doctorWarns verdict = 10

// Help is what doctor --help says beside.
func (*doctorCmd) Help() string {
	return fmt.Sprintf("With each finding stands what mends it. The exit code is 0 when all is well, %d when there are warnings, and 1 when something keeps a node from working, or could not be looked at.", doctorWarns)
}

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
	marks := map[doctor.Mark]int{}
	for _, f := range findings {
		marks[f.Mark]++
	}
	switch {
	case marks[doctor.Bad] > 0:
		return fmt.Errorf("%d of %d findings need a look", marks[doctor.Bad]+marks[doctor.Warn], len(findings))
	case marks[doctor.Warn] > 0:
		return doctorWarns
	}
	return nil
}

// findings are of this machine, if the node is of it, and of the node, if it answers.
func (c *cli) findings(ctx context.Context, app *ask.Node) (findings []doctor.Finding, err error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	_, s, away := app.Status(ctx)
	if app.Remote == "" && errors.Is(away, fs.ErrPermission) { // then nothing here is as the node sees it
		return []doctor.Finding{doctor.Bad.Of("node", away.Error()).By("sudo -u \"#$(stat -c %%u %s)\" grange doctor", c.Data)}, nil
	}
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
		if f.Mend == "" {
			continue
		}
		if _, err := fmt.Fprintf(std.Out, "     mend: %s\n", f.Mend); err != nil { // to be copied whole
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
		return []doctor.Finding{doctor.Bad.Of("config", err.Error()).By("grange node --help  # lists the settings; correct them in %s or in the environment", cmp.Or(string(c.Config), "the config file"))}
	}
	w := &would.Node
	settings := doctor.Settings{
		Data: c.Data, Quota: int64(w.Quota), Origin: strings.Join(w.Origin[:min(len(w.Origin), 1)], ""), API: w.API, FarmBind: w.FarmBind, NBD: w.NBD, Listen: w.Listen, FarmJoin: w.FarmJoin,
		Open: originOpener{log: slog.New(slog.DiscardHandler)}.openURL, Timeout: statusTimeout,
		Bootstrap: w.Bootstrap,
	}
	if w.Join != nil && *w.Join != ask.FromStdin { // which is not here
		settings.Token, settings.TokenErr = w.token(c.Data, std)
	}
	out := settings.Examine(ctx, s, away)
	if _, err := w.doors(c.Data); err != nil {
		out = append(out, doctor.Bad.Of("nbd", err.Error()).By("set nbd: 127.0.0.1:10809, or nbd-tls: DIR with its certificates"))
	}
	return out
}

func examineNode(s api.Status) []doctor.Finding {
	out := []doctor.Finding{
		doctor.GoodIf(s.Ready).Of("node", cmp.Or(ask.Prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")).By("grange status --wait 1m; journalctl -u grange -n 50  # says what it waits for"),
		doctor.GoodIf(s.Self.Revoked.IsZero()).Of("membership", cmp.Or(revoked(s.Self), string(s.Self.Role))).By("(umask 077; grange token create --role %s > token)  # on an admin; here, join with it, over an empty --data", s.Self.Role),
		doctor.GoodIf(originGood(s.Origin) || s.Seed != nil).Of("origin", s.Origin.State+ask.Prefixed(": ", s.Origin.Detail)).By("%s", doctor.MendStore(s.Origin.Detail)),
		doctor.GoodIf(!s.Cache.Full).Of("cache", fmt.Sprintf("%s of %s", units.Bytes(s.Cache.Used), units.Bytes(s.Cache.Quota))+beyond(s.Cache)).By("grange cache evict 10G  # or a larger quota in the config file, then systemctl reload grange"),
		doctor.GoodIf(s.Neighbourhood.State != node.FarmCutOff).Of("farm", neighbours(s)).By("%s", doctor.LetPass),
	}
	if s.Seed == nil {
		out = append(out, disksFinding(s.Disks), volumesFinding(s))
	}
	for _, w := range s.Warnings {
		out = append(out, doctor.Bad.Of(w.About, w.Text).By("%s", mendWarning(w.About)))
	}
	return out
}

// mendWarning is what to run about what a node warns of.
func mendWarning(about string) string {
	if volume, ok := strings.CutPrefix(about, "volume:"); ok {
		return "grange volume show " + volume + "; grange mesh members"
	}
	switch about {
	case "farm", "mesh":
		return doctor.LetPass
	case "paths":
		return "nft insert rule inet filter output udp sport 4001 accept  # or forward a port, and set announce: /ip4/ADDRESS/tcp/4001"
	case "origin":
		return "grange mesh peers; grange why VOLUME"
	case "origin gc":
		return "grange origin gc --dry-run  # then grange origin gc, with --yes where it asks for that"
	case "origin verify":
		return "grange origin verify  # names what to import again: grange image import NAME SOURCE --replace"
	case "follow":
		return "give follow: in the config file fewer names, or longer patterns, then systemctl reload grange"
	}
	return "grange origin verify  # names what to import again; then mount or attach it anew"
}

func volumesFinding(s api.Status) doctor.Finding {
	if len(s.Failing) > 0 {
		return doctor.Bad.Of("volumes", fmt.Sprintf("%s can't be served, or can't be written to; `grange volume show NAME` says why", strings.Join(s.Failing, ", "))).By("grange volume show %s; df -h", s.Failing[0])
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
		return doctor.Note.Of("ublk", "volumes are served over NBD: "+strings.TrimPrefix(d.Detail, "ublk: ")).By("modprobe ublk_drv && echo ublk_drv > /etc/modules-load.d/grange.conf && systemctl restart grange  # in a kernel from 6.5 on")
	case d.Detail != "":
		return doctor.Note.Of("ublk", "volumes are served as block devices; "+d.Detail).By("systemctl edit grange  # [Service] AmbientCapabilities=CAP_SYS_ADMIN CAP_SYS_RESOURCE, then systemctl restart grange")
	}
	return doctor.Good.Of("ublk", "volumes are served as block devices")
}
