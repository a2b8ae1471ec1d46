package main

import (
	"context"
	"fmt"
	"io"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/origin/trust"
)

type seedCmd struct {
	UploadRate units.Rate     `help:"Bytes a second that go out at most, to all together." placeholder:"SIZE/s"`
	Monthly    units.Size     `help:"Bytes that go out in a month of the calendar at most; what carries them over the network, some hundredths more, is not counted." placeholder:"SIZE"`
	Schedule   []units.Window `help:"When it serves, by the clock of this host; always when not given. 22:00-06:00 is every night, mon-fri 22:00-06:00 those that begin on these days; a rate behind it, as in sat-sun 00:00-24:00 2MiB/s, stands in for --upload-rate meanwhile. Where two overlap, the first counts." placeholder:"[DAYS] FROM-TO [SIZE/s],…"`
	memberFlags
}

const (
	// uploadMin is the least that --upload-rate may be, a chunk a second: askers give up on
	// who is slower. monthlyMin is the least of --monthly.
	uploadMin  = originRateMin
	monthlyMin = 64 << 20
)

// Validate refuses limits with which a seed would be of no use to anybody.
func (c *seedCmd) Validate() error {
	rates := []units.Rate{c.UploadRate}
	for _, w := range c.Schedule {
		rates = append(rates, units.Rate(w.Rate))
	}
	for _, r := range rates {
		if r != 0 && r < uploadMin {
			return fmt.Errorf("--upload-rate, --schedule: at %d bytes a second no chunk would get out in time; give %s/s or more", r, units.Bytes(uploadMin))
		}
	}
	if c.Monthly != 0 && c.Monthly < monthlyMin {
		return fmt.Errorf("--monthly: %s is no image; give %s or more", units.Bytes(int64(c.Monthly)), units.Bytes(monthlyMin))
	}
	return c.memberFlags.Validate()
}

// Run serves until ctx ends, or the seed hands over to its program's newest version.
func (c *seedCmd) Run(ctx context.Context, app *cli, std ask.Stdio, last lastCall) error {
	cfg, err := c.config(app, std)
	if err != nil {
		return err
	}
	cfg.Role, cfg.Terms = trust.RoleSeed, seed.Terms{Rate: int64(c.UploadRate), Monthly: int64(c.Monthly)}
	for _, w := range c.Schedule {
		cfg.Terms.Schedule = append(cfg.Terms.Schedule, seed.Window(w))
	}
	if c.Check {
		return node.Check(ctx, cfg)
	}
	if err := c.couldServe(ctx, app.Data); err != nil {
		return err
	}
	return c.serve(ctx, last, cfg, &doors{})
}

// imagesShown is of how many images status says what was sent.
const imagesShown = 10

// seedTable says what a seed sends; nothing of a node.
func seedTable(w io.Writer, v *seed.View) {
	if v == nil {
		return
	}
	limit, rate := "", "without limit"
	if v.Monthly > 0 {
		limit = fmt.Sprintf(" of %s, %s left", units.Bytes(v.Monthly), units.Bytes(v.Left))
	}
	if v.Rate > 0 {
		rate = units.Bytes(v.Rate) + "/s"
	}
	fmt.Fprintf(w, "sends\t%s%s\nupload\t%s\nsent\t%s in %s%s: %s served to %s, to %d of them today; %s relayed\n", v.State, ask.Prefixed(", ", v.Detail), rate,
		units.Bytes(v.Served+v.Relayed), v.Month, limit, units.Bytes(v.Served), ask.Count(v.PeersAll, "peer"), v.PeersDay, units.Bytes(v.Relayed))
	for _, i := range v.Images[:min(len(v.Images), imagesShown)] {
		fmt.Fprintf(w, "of\t%s %s\n", i.Name, units.Bytes(i.Served))
	}
}
