// Package volume has the commands on volumes and their snapshots.
package volume

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
)

// Commands are those on volumes.
type Commands struct {
	Create   createCmd   `cmd:"" help:"Create a volume from an image, a volume or a snapshot, or blank, and serve it."`
	Attach   attachCmd   `cmd:"" help:"Serve a volume that exists, or change how."`
	Ls       lsCmd       `cmd:"" help:"List volumes: this node's, or with --all those of the mesh."`
	Show     showCmd     `cmd:"" help:"Show one volume."`
	Detach   detachCmd   `cmd:"" help:"Stop serving a volume, so that any node may attach it."`
	Move     moveCmd     `cmd:"" help:"Let another node of the farm have a volume of this one; who has it open here is cut off."`
	Snapshot snapshotCmd `cmd:"" help:"Name the state that a volume has now, at once."`
	Rollback rollbackCmd `cmd:"" help:"Make a volume, which nobody has open, what it was at a snapshot of it."`
	Resize   resizeCmd   `cmd:"" help:"Make a volume larger, while it is served."`
	Limit    limitCmd    `cmd:"" help:"Say how much clients may get of a volume, while it is served."`
	Changes  changesCmd  `cmd:"" help:"List where a volume differs from a snapshot of it, or one snapshot from another."`
	Export   exportCmd   `cmd:"" help:"Write a volume or a snapshot to a file, sparse."`
	Rm       rmCmd       `cmd:"" help:"Delete a volume; absent is success, and its snapshots stay."`
}

func pathOf(name string) string { return "/api/volumes/" + content.Segment(name) }

// policy is what commands take that say what a flush means.
type policy struct {
	Durability string `help:"What a flush means: that what was written is on this node's disk (local), on those of K other members of the farm (farm:K), or in the bucket (origin)." placeholder:"local|farm:K|origin"`
	Degrade    string `enum:",local,none" default:"" help:"With farm:K: local lets flushes go on without the members after 20 s, once the record says so; none takes that back." placeholder:"local|none"`
}

type createCmd struct {
	Name      string     `arg:"" help:"The volume."`
	From      string     `help:"What it begins as: image:NAME, of an image or a tag, volume:NAME, volume:NAME?at=folded or snapshot:NAME@N; a blank disk when not given." placeholder:"REF"`
	Size      units.Size `help:"Size; that of what it begins as when not given."`
	Transport string     `enum:"auto,nbd,ublk" default:"auto" help:"How it is served: ${enum}."`
	policy
	Readonly bool `help:"Refuse writes, for good."`
}

func (c *createCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	spec := api.VolumeSpec{Size: int64(c.Size), Transport: c.Transport, Durability: c.Durability, Degrade: c.Degrade, ReadOnly: c.Readonly}
	if err := spec.From.UnmarshalText([]byte(c.From)); err != nil {
		return fmt.Errorf("%w: --from: %w", ask.ErrUsage, err)
	}
	return put(ctx, app, std, c.Name, spec)
}

type attachCmd struct {
	Name      string `arg:"" help:"The volume."`
	Transport string `enum:"auto,nbd,ublk" default:"auto" help:"How it is served: ${enum}; auto: as before."`
	policy
	Readonly   bool   `help:"Of a volume of another node, or of none: read it as the bucket has it now, beside whoever writes it. Of this node's: refuse writes until it is attached anew; so a damaged one can be saved."`
	Takeover   bool   `env:"-" help:"Although another node holds it: what that one has acknowledged and not passed on stays behind, as a snapshot."`
	Generation uint64 `env:"-" help:"An orchestrator's own count: refused when the volume has seen a greater one." placeholder:"N"`
}

func (c *attachCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return put(ctx, app, std, c.Name, api.VolumeSpec{
		Transport: c.Transport, Durability: c.Durability, Degrade: c.Degrade, ReadOnly: c.Readonly, Takeover: c.Takeover, Generation: c.Generation,
	})
}

// put prints the device alone, for scripts to open.
func put(ctx context.Context, app *ask.Node, std ask.Stdio, name string, spec api.VolumeSpec) error {
	if err := content.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	return ask.Tell(ctx, app, std, ask.Put(pathOf(name), spec), func(w io.Writer, v api.Volume) {
		if v.Detail != "" {
			ask.Complain(std.Err, fmt.Sprintf("volume %s is %s: %s", v.Name, v.State, v.Detail))
		}
		fmt.Fprintln(w, v.Device)
	})
}

type lsCmd struct {
	ask.Choice
	All bool `env:"-" help:"Those of the whole mesh, each with the node that has it."`
}

func (c *lsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	path, last, value := "/api/volumes", "DEVICE", func(v api.Volume) string { return v.Device }
	if c.All {
		path, last, value = path+"?all=true", "NODE", func(v api.Volume) string { return cmp.Or(v.NodeName, v.Node) }
	}
	return ask.List(ctx, app, std, c.Of(path), func(w io.Writer, vols []api.Volume) {
		fmt.Fprintln(w, "NAME\tFARM\tSIZE\tFROM\tSTATE\tDURABILITY\tDIRTY\t"+last)
		for _, v := range vols {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.Farm, units.Bytes(v.Size), v.From, v.State, v.Durability, known(v, v.DirtyBytes), value(v))
		}
	})
}

type showCmd struct {
	Name string `arg:"" help:"The volume."`
}

func (c *showCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(pathOf(c.Name)), table)
}

func table(w io.Writer, v api.Volume) {
	fmt.Fprintf(w, "name\t%s\nfarm\t%s\nnode\t%s\nstate\t%s%s\ndevice\t%s\nsize\t%s\nfrom\t%s\nroot\t%s\ndurability\t%s%s\nread-only\t%v\nepoch\t%d\ndirty\t%s\non this disk\t%s\n",
		v.Name, v.Farm, strings.TrimSpace(v.NodeName+" "+v.Node), v.State, ask.Prefixed(": ", cmp.Or(v.Detail, unconfirmed(v))), v.Device, units.Bytes(v.Size), v.From, v.Root, v.Durability, ask.Prefixed(", degrade ", v.Degrade), v.ReadOnly, v.Epoch, known(v, v.DirtyBytes), known(v, v.DiskBytes))
	fmt.Fprintf(w, "not in bucket\t%s\n", known(v, v.Lag))
	for _, x := range []struct{ name, value string }{
		{"folded", momentOr(v.FoldedAt, "never")}, {"if lost", v.Loss}, {"degraded", ask.Prefixed("since ", momentOr(v.Degraded, ""))}, {"held by", cmp.Or(strings.Join(v.HolderNames, ", "), map[bool]string{true: "nobody"}[v.Short]) + map[bool]string{true: ": too few"}[v.Short]}, {"limits", limited(v.Limits)},
	} {
		if x.value != "" {
			fmt.Fprintf(w, "%s\t%s\n", x.name, x.value)
		}
	}
	fmt.Fprintf(w, "read from\t%s\n", ask.Sources(v.Bytes))
	if v.Blocked > 0 {
		fmt.Fprintf(w, "waited\t%s for what was not here%s\n", ask.Span(v.Blocked), ask.Prefixed(": ", ask.Waits(v.Spent)))
	}
}

// unconfirmed says why a volume that is served may fail flushes, where nothing else does.
func unconfirmed(v api.Volume) string {
	if v.State != "attached" || v.Confirmed || v.Durability == "local" || v.ReadOnly {
		return ""
	}
	return "whether it is this node's still is not known until the origin answers; flushes wait for that, and fail"
}

// momentOr is a time for people, or what stands for none.
func momentOr(t time.Time, never string) string {
	if t.IsZero() {
		return never
	}
	return t.Local().Format(time.DateTime)
}

// limited is "100 requests/s, 1.0 MiB/s".
func limited(l api.Limits) string {
	var out []string
	if l.IOPS > 0 {
		out = append(out, fmt.Sprintf("%d requests/s", l.IOPS))
	}
	if l.BytesPerSecond > 0 {
		out = append(out, units.Bytes(l.BytesPerSecond)+"/s")
	}
	return strings.Join(out, ", ")
}

// ending is what commands take that end the use of a volume.
type ending struct {
	Name  string `arg:"" help:"The volume."`
	Force bool   `env:"-" help:"Although it is in use: who uses it gets errors."`
}

// path is that of a deed, by its end behind the volume's.
func (v ending) path(deed string, query url.Values) string {
	if v.Force {
		query.Set("force", "true")
	}
	return pathOf(v.Name) + deed + ask.Prefixed("?", query.Encode())
}

type detachCmd struct{ ending }

func (c *detachCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Post(c.path("/detach", url.Values{}), nil), func(w io.Writer, v api.Volume) {
		if v.State == "detached" {
			ask.Complain(std.Err, fmt.Sprintf("volume %s is this node's still: what was written did not get into the bucket; attach and detach it again when `grange status` says that the origin is ok", c.Name))
		}
		fmt.Fprintf(w, "volume %s is served here no more\n", c.Name)
	})
}

type rmCmd struct {
	ending
	Purge bool `env:"-" help:"Its snapshots too."`
}

func (c *rmCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	query, snapshots := url.Values{}, ""
	if c.Purge {
		query.Set("purge", "true")
		snapshots = ", and its snapshots"
	}
	return ask.Tell(ctx, app, std, ask.Delete(c.path("", query)), ask.Said("volume %s is gone here%s", c.Name, snapshots))
}

type moveCmd struct {
	Name string `arg:"" help:"The volume."`
	Node string `arg:"" help:"Name or ID of the member that is to have it."`
}

func (c *moveCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return app.Operate(ctx, std, "POST", pathOf(c.Name)+"/move", api.MoveRequest{Node: c.Node})
}

type resizeCmd struct {
	Name string     `arg:"" help:"The volume."`
	Size units.Size `arg:"" help:"Its new size, no less than it has."`
}

func (c *resizeCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Post(pathOf(c.Name)+"/resize", api.ResizeRequest{Size: int64(c.Size)}), func(w io.Writer, v api.Volume) {
		fmt.Fprintf(w, "volume %s has %s\n", v.Name, units.Bytes(v.Size))
	})
}

type limitCmd struct {
	Name string     `arg:"" help:"The volume."`
	IOPS int64      `name:"iops" env:"-" help:"Requests a second; no limit when not given." placeholder:"N"`
	Rate units.Rate `env:"-" help:"Bytes a second; no limit when not given." placeholder:"SIZE/s"`
}

func (c *limitCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	limits := api.Limits{IOPS: c.IOPS, BytesPerSecond: int64(c.Rate)}
	return ask.Tell(ctx, app, std, ask.Post(pathOf(c.Name)+"/limits", limits), func(w io.Writer, v api.Volume) {
		fmt.Fprintf(w, "volume %s: %s\n", v.Name, cmp.Or(limited(v.Limits), "no limits"))
	})
}

type exportCmd struct {
	Ref string `arg:"" help:"volume:NAME, volume:NAME?at=folded, snapshot:NAME@N, NAME or NAME@N."`
	ask.ExportTo
}

func (c *exportCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	path, err := DiskPath(c.Ref, "/export")
	if err != nil {
		return err
	}
	return c.Export(ctx, app, std, path)
}

// DiskPath is where a deed on a volume or a snapshot is asked for.
func DiskPath(text, deed string) (string, error) {
	ref, err := content.ParseRef(text)
	switch {
	case err == nil:
	case content.CheckName(text) == nil:
		ref, err = content.Ref{Kind: content.KindVolume, Name: text}, nil
	case content.KindSnapshot.CheckName(text) == nil:
		ref.Kind, err = content.KindSnapshot, nil
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ask.ErrUsage, err)
	case ref.Kind == content.KindSnapshot:
		return snapshotPath(strings.TrimPrefix(text, string(content.KindSnapshot)+":")) + deed, nil
	case ref.Kind != content.KindVolume:
		return "", fmt.Errorf("%w: %s: want volume:NAME or snapshot:NAME@N", ask.ErrUsage, text)
	case ref.Folded:
		deed += "?at=folded"
	}
	return pathOf(ref.Name) + deed, nil
}

// known is a figure that the node knows of volumes that are open.
func known(v api.Volume, bytes int64) string {
	if v.Device == "" {
		return "-"
	}
	return units.Bytes(bytes)
}

// SnapshotCommands are those on snapshots of any volume.
type SnapshotCommands struct {
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
		return "", "", fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	name, number, _ = strings.Cut(s.ID, "@")
	return name, number, nil
}

type snapshotLsCmd struct {
	Volume string `arg:"" optional:"" help:"The volume."`
}

func (c *snapshotLsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	query := url.Values{}
	if c.Volume != "" {
		query.Set("volume", c.Volume)
	}
	return ask.List(ctx, app, std, "/api/snapshots"+ask.Prefixed("?", query.Encode()), func(w io.Writer, all []api.Snapshot) {
		fmt.Fprintln(w, "SNAPSHOT\tLABEL\tSIZE\tCREATED\tDURABLE\tBEHIND")
		for _, s := range all {
			durable := "yes"
			if !s.Durable {
				durable = "no, the rest is on " + s.Node
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, s.Label, units.Bytes(s.Size), ask.Moment(s.Created), durable, s.Parent)
		}
	})
}

type snapshotRmCmd struct{ snapshotArg }

func (c *snapshotRmCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	if _, _, err := c.volume(); err != nil {
		return err
	}
	return ask.Tell(ctx, app, std, ask.Delete(snapshotPath(c.ID)), ask.Said("there is no snapshot %s any more", c.ID))
}

type snapshotCmd struct {
	Name  string `arg:"" help:"The volume."`
	Label string `env:"-" help:"Anything that says what it is."`
	Wait  string `env:"-" enum:",durable" default:"" help:"durable: until all of it is in the bucket." placeholder:"durable"`
}

// Run prints the snapshot's name alone, for scripts to use, when it is made.
func (c *snapshotCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	var taken api.Taken
	path := pathOf(c.Name) + "/snapshots"
	if c.Wait != "" {
		path += "?wait=" + c.Wait
	}
	if err := app.Ask(ctx, "POST", path, api.SnapshotRequest{Label: c.Label}, &taken); err != nil {
		return err
	}
	if taken.Operation != "" {
		op := api.Operation{ID: taken.Operation, Kind: "snapshot", Target: taken.ID}
		if err := app.FollowAside(ctx, std, op); err != nil {
			return fmt.Errorf("%w; snapshot %s is made, and is not durable yet", err, taken.ID)
		}
	}
	return ask.Tell(ctx, app, std, ask.Get(snapshotPath(taken.ID)), func(w io.Writer, s api.Snapshot) { fmt.Fprintln(w, s.ID) })
}

type rollbackCmd struct{ snapshotArg }

func (c *rollbackCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	volume, _, err := c.volume()
	if err != nil {
		return err
	}
	return ask.Tell(ctx, app, std, ask.Post(pathOf(volume)+"/rollback", api.RollbackRequest{Snapshot: c.ID}), ask.Said("volume %s is what it was at %s", volume, c.ID))
}

type changesCmd struct {
	snapshotArg
	To string `arg:"" optional:"" help:"NAME@M, another snapshot; the volume as it is now when not given."`
}

func (c *changesCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	volume, from, err := c.volume()
	if err != nil {
		return err
	}
	query := url.Values{"from": {from}}
	if c.To != "" {
		other, to, err := snapshotArg{c.To}.volume()
		if err == nil && other != volume {
			err = fmt.Errorf("%w: %s and %s are of two volumes", ask.ErrUsage, c.ID, c.To)
		}
		if err != nil {
			return err
		}
		query.Set("to", to)
	}
	return ask.List(ctx, app, std, pathOf(volume)+"/changes?"+query.Encode(), func(w io.Writer, all []api.Extent) {
		fmt.Fprintln(w, "OFFSET\tLENGTH")
		for _, x := range all {
			fmt.Fprintln(w, strconv.FormatInt(x.Offset, 10)+"\t"+strconv.FormatInt(x.Length, 10))
		}
	})
}

// Why is the command that says what reads waited for.
type Why struct {
	Volume string `arg:"" help:"The volume."`
}

func (c *Why) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(pathOf(c.Volume)+"/why"), func(w io.Writer, y api.Why) {
		if len(y.Reads) == 0 {
			fmt.Fprintln(w, "no read took longer than 10 ms in the last ten minutes")
		}
		for _, line := range y.Words {
			fmt.Fprintln(w, line)
		}
		for _, p := range y.PassedOver {
			fmt.Fprintf(w, "%s is passed over until %s%s\n", cmp.Or(p.Name, p.ID), ask.Moment(p.Until), ask.Prefixed(": ", p.Failure))
		}
		for _, r := range y.Reads {
			fmt.Fprintf(w, "\n%s of %s at %s took %s%s%s\n", units.Bytes(int64(r.Length)), "offset "+fmt.Sprint(r.Offset), ask.Moment(r.At), seconds(r.Took),
				cmp.Or(ask.Prefixed(", from ", r.Source), ask.Prefixed(", and failed: ", r.Error), " so far"), ask.Prefixed(", chunk ", r.Chunk))
			for _, s := range r.Steps {
				who := strings.TrimSpace(s.What + " " + cmp.Or(s.Name, s.Peer.String()))
				fmt.Fprintf(w, "  %+8.3f s\t%s\t%s\t%s\n", s.At.Sub(r.At).Seconds(), who, seconds(s.Took), cmp.Or(s.Outcome, map[bool]string{true: "brought it"}[s.Brought]))
			}
		}
	})
}

// seconds is a time that something took, "" for 0.
func seconds(s float64) string {
	if s == 0 {
		return ""
	}
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond / 10).String()
}
