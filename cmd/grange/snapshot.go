package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
)

type snapshotCmd struct {
	Ls snapshotLsCmd `cmd:"" help:"List snapshots, of one volume or of all."`
	Rm snapshotRmCmd `cmd:"" help:"Delete a snapshot; absent is success."`
}

func snapshotPath(id string) string { return "/api/snapshots/" + content.Segment(id) }

// snapshotArg is the argument of commands on one snapshot.
type snapshotArg struct {
	ID string `arg:"" name:"snapshot" help:"NAME@N, as snapshot ls has it."`
}

// volume is the volume that the snapshot is of, and number the N.
func (s snapshotArg) volume() (name, number string, err error) {
	if err := content.KindSnapshot.CheckName(s.ID); err != nil {
		return "", "", fmt.Errorf("%w: %w", errUsage, err)
	}
	name, number, _ = strings.Cut(s.ID, "@")
	return name, number, nil
}

type snapshotLsCmd struct {
	Volume string `arg:"" optional:"" help:"The volume."`
}

func (c *snapshotLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	query := url.Values{}
	if c.Volume != "" {
		query.Set("volume", c.Volume)
	}
	return list(ctx, app, std, "/api/snapshots"+prefixed("?", query.Encode()), func(w io.Writer, all []api.Snapshot) {
		fmt.Fprintln(w, "SNAPSHOT\tLABEL\tSIZE\tCREATED\tDURABLE\tBEHIND")
		for _, s := range all {
			durable := "yes"
			if !s.Durable {
				durable = "no, the rest is on " + s.Node
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, s.Label, units.Bytes(s.Size), moment(s.Created), durable, s.Parent)
		}
	})
}

type snapshotRmCmd struct{ snapshotArg }

func (c *snapshotRmCmd) Run(ctx context.Context, app *cli, std stdio) error {
	if _, _, err := c.volume(); err != nil {
		return err
	}
	return tell(ctx, app, std, request{method: "DELETE", path: snapshotPath(c.ID)}, said("there is no snapshot %s any more", c.ID))
}

type volumeSnapshotCmd struct {
	Name  string `arg:"" help:"The volume."`
	Label string `env:"-" help:"Anything that says what it is."`
	Wait  string `env:"-" enum:",durable" default:"" help:"durable: until all of it is in the bucket." placeholder:"durable"`
}

// Run prints the snapshot's name alone, for scripts to use, when it is made.
func (c *volumeSnapshotCmd) Run(ctx context.Context, app *cli, std stdio) error {
	var taken api.Taken
	path := volumePath(c.Name) + "/snapshots"
	if c.Wait != "" {
		path += "?wait=" + c.Wait
	}
	if err := app.ask(ctx, "POST", path, api.SnapshotRequest{Label: c.Label}, &taken); err != nil {
		return err
	}
	if taken.Operation != "" {
		quiet := *app // the document is the snapshot's
		quiet.JSON = false
		op := api.Operation{ID: taken.Operation, Kind: "snapshot", Target: taken.ID}
		if err := quiet.follow(ctx, stdio{std.in, std.err, std.err}, op); err != nil {
			return fmt.Errorf("%w; snapshot %s is made, and is not durable yet", err, taken.ID)
		}
	}
	return tell(ctx, app, std, request{method: "GET", path: snapshotPath(taken.ID)}, func(w io.Writer, s api.Snapshot) { fmt.Fprintln(w, s.ID) })
}

type volumeRollbackCmd struct{ snapshotArg }

func (c *volumeRollbackCmd) Run(ctx context.Context, app *cli, std stdio) error {
	volume, _, err := c.volume()
	if err != nil {
		return err
	}
	return tell(ctx, app, std, request{"POST", volumePath(volume) + "/rollback", api.RollbackRequest{Snapshot: c.ID}}, said("volume %s is what it was at %s", volume, c.ID))
}

type volumeChangesCmd struct {
	snapshotArg
	To string `arg:"" optional:"" help:"NAME@M, another snapshot; the volume as it is now when not given."`
}

func (c *volumeChangesCmd) Run(ctx context.Context, app *cli, std stdio) error {
	volume, from, err := c.volume()
	if err != nil {
		return err
	}
	query := url.Values{"from": {from}}
	if c.To != "" {
		other, to, err := snapshotArg{c.To}.volume()
		if err == nil && other != volume {
			err = fmt.Errorf("%w: %s and %s are of two volumes", errUsage, c.ID, c.To)
		}
		if err != nil {
			return err
		}
		query.Set("to", to)
	}
	return list(ctx, app, std, volumePath(volume)+"/changes?"+query.Encode(), func(w io.Writer, all []api.Extent) {
		fmt.Fprintln(w, "OFFSET\tLENGTH")
		for _, x := range all {
			fmt.Fprintln(w, strconv.FormatInt(x.Offset, 10)+"\t"+strconv.FormatInt(x.Length, 10))
		}
	})
}
