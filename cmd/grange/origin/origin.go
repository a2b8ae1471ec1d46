// Package origin has the commands on the origin as a whole.
package origin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/garbage/usage"
)

// Commands are those on the origin.
type Commands struct {
	Gc     gcCmd     `cmd:"" help:"Delete what no name needs any more: mark it, and delete what was marked longer ago than the grace and is dead still."`
	Verify verifyCmd `cmd:"" help:"Look whether all that names stand for is at the origin, and right; fails where it is not."`
	Copy   copyCmd   `cmd:"" help:"Copy the origin to another store, as far as that lacks it."`
	Du     duCmd     `cmd:"" help:"Say who needs how much of the origin: NEEDS is what its content takes, ALONE and SHARED are the packs that it alone, or others too, have that in."`
}

// Flags are those of a node that looks after the origin.
type Flags struct {
	Gc     units.Interval `help:"How often garbage is collected at the origin, by one of the publishers' and admins' nodes of the mesh; 0: never by this one." default:"24h" placeholder:"TIME"`
	Verify units.Interval `help:"How often this node, of a publisher or an admin, checks the origin, reading all but chunks, and 2 % of those; 0: never." default:"7d" placeholder:"TIME"`
}

// intervalMin is the least that an interval may be but 0: what is done takes as long.
const intervalMin = units.Interval(time.Minute)

// Validate refuses intervals that leave no time between.
func (f *Flags) Validate() error {
	for name, every := range map[string]units.Interval{"gc": f.Gc, "verify": f.Verify} {
		if every != 0 && every < intervalMin {
			return fmt.Errorf("--origin-%s: every %s is too often; give 1m or more, or 0 for never", name, time.Duration(every))
		}
	}
	return nil
}

// Config is how a node looks after the origin.
func (f *Flags) Config() node.Upkeep {
	return node.Upkeep{Collect: time.Duration(f.Gc), Verify: time.Duration(f.Verify)}
}

type gcCmd struct {
	DryRun bool       `env:"-" help:"Say what would be done, and write nothing."`
	Grace  units.Span `env:"-" default:"24h" help:"How long what is dead stays, from the run that finds it to one that deletes it; 1h at least."`
	Share  units.Part `env:"-" default:"25%" help:"How much of all bytes may go at once, 25% when not given; where it is more nothing goes." placeholder:"N%"`
	Waste  units.Part `env:"-" default:"10%" help:"How much of the packs may be dead before some are written anew, 10% when not given; 100%: none ever." placeholder:"N%"`
	Yes    bool       `env:"-" help:"Although more than the share goes."`
}

func (c *gcCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Report(ctx, app, std, ask.Post("/api/origin/gc", api.CollectRequest{
		Grace: time.Duration(c.Grace).Seconds(), Share: float64(c.Share), Waste: float64(c.Waste), Yes: c.Yes, DryRun: c.DryRun,
	}), collected)
}

func amount(a garbage.Amount) string {
	return ask.Count(int(a.Objects), "object") + ", " + units.Bytes(a.Bytes)
}

func collected(w io.Writer, r api.Garbage) {
	if len(r.Rows) > 0 {
		fmt.Fprintln(w, "WHAT\tSCOPE\tWHY\tTHEN\tOBJECTS\tBYTES")
	}
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", row.What, cmp.Or(row.Scope, "-"), row.Why, row.Then, row.Objects, units.Bytes(row.Bytes))
	}
	fmt.Fprintf(w, "in use: %s\n", amount(r.Live))
	if r.Dry {
		fmt.Fprintf(w, "nothing was written; a run would mark %s, and delete or write anew %s\n", amount(r.Marked), amount(r.Going))
	} else {
		fmt.Fprintf(w, "marked: %s; deleted: %s; written anew: %s, which gave %s back; %s to the origin\n", amount(r.Marked), amount(r.Deleted),
			ask.Count(int(r.Repacked.Objects), "pack"), units.Bytes(r.Repacked.Bytes), ask.Count(int(r.Requests), "request"))
	}
	if r.Waiting.Objects > 0 {
		fmt.Fprintf(w, "waiting: %s", amount(r.Waiting))
		first := "of which the first go"
		if r.Beyond {
			fmt.Fprintf(w, ", of which %s, more than the share, go with --yes", amount(r.Going))
			first = "others"
		}
		if !r.Next.IsZero() {
			fmt.Fprintf(w, ", %s in a run after %s", first, r.Next.Local().Format(time.DateTime))
		}
		fmt.Fprintln(w)
	}
	broken(w, r.Broken)
}

// broken lists names that can't be read, and says what is to be done about them.
func broken(w io.Writer, all []garbage.Broken) {
	for _, b := range all {
		fmt.Fprintf(w, "broken: %s: %s\n", b.Name, b.Error)
	}
	if len(all) > 0 {
		fmt.Fprintln(w, "what is broken keeps all that it may hold from being deleted: import it again, restore it from a copy of the origin, or remove the name")
	}
}

type verifyCmd struct {
	ReadData units.Part `env:"-" default:"100%" help:"How much of the chunks is read, other ones each time, all when not given; all else is always read." placeholder:"N%"`
	After    string     `env:"-" help:"Go on behind this key, the last of a check that was cut short." placeholder:"KEY"`
}

func (c *verifyCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Report(ctx, app, std, ask.Post("/api/origin/verify", api.VerifyRequest{ReadData: float64(c.ReadData), After: c.After}), verified)
}

func verified(w io.Writer, r api.Check) {
	for _, h := range r.Hurt {
		fmt.Fprintf(w, "hurt: %s: %d damaged, %d missing\n", h.Name, h.Bad, h.Missing)
		for _, d := range h.Damages {
			fmt.Fprintf(w, "  %s\n", d)
		}
	}
	if more := r.HurtNames - int64(len(r.Hurt)); more > 0 {
		fmt.Fprintf(w, "and %s more\n", ask.Count(int(more), "hurt name"))
	}
	fmt.Fprintf(w, "%s and %s were looked at: %s, %s and %s, %s in all, are right\n", ask.Count(int(r.Records), "record"), ask.Count(int(r.Roots), "root"), ask.Count(int(r.Chunks), "chunk"),
		ask.Count(int(r.Nodes), "map node"), ask.Count(int(r.Segments), "segment"), units.Bytes(int64(r.StoredBytes+r.SegmentBytes)))
	if r.Unread > 0 {
		fmt.Fprintf(w, "%s more were not read, but for whether their packs can have them; `--read-data 100%%` reads all\n", ask.Count(int(r.Unread), "chunk"))
	}
	if r.HurtNames > 0 {
		fmt.Fprintln(w, "what is damaged is stored anew when the same content is imported again")
	}
}

type copyCmd struct {
	To string `arg:"" name:"url" help:"Where to, as --origin of a node says it: file:///FOLDER or s3://BUCKET/PREFIX?endpoint=…&region=…; with the credentials of the node."`
}

func (c *copyCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Report(ctx, app, std, ask.Post("/api/origin/copy", api.CopyRequest{To: c.To}), func(w io.Writer, r api.Replica) {
		fmt.Fprintf(w, "sent: %s, and %s of %d; there already: %s\n", amount(r.Sent), ask.Count(int(r.RecordsSent), "record"), r.Records, amount(r.Present))
		for _, name := range r.Newer {
			fmt.Fprintf(w, "newer there, and left: %s\n", name)
		}
		for _, f := range r.Failures {
			fmt.Fprintf(w, "not copied: %s: %s\n", cmp.Or(f.Name, f.Key), f.Error)
		}
	})
}

type duCmd struct {
	Limit int `env:"-" default:"50" help:"Show so many names, those that need most; 0: all." placeholder:"N"`
}

func (c *duCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Report(ctx, app, std, ask.Post("/api/origin/usage", struct{}{}), func(w io.Writer, r api.Usage) { c.table(w, r) })
}

func (c *duCmd) table(w io.Writer, r api.Usage) {
	names := slices.Clone(r.Names)
	slices.SortStableFunc(names, func(a, b usage.Name) int {
		return cmp.Or(cmp.Compare(b.Stored+b.Segments, a.Stored+a.Segments), cmp.Compare(a.Name, b.Name))
	})
	shown := len(names)
	if c.Limit > 0 {
		shown = min(shown, c.Limit)
	}
	if shown > 0 {
		fmt.Fprintln(w, "NAME\tSCOPE\tNEEDS\tALONE\tSHARED\tSEGMENTS")
	}
	for _, n := range names[:shown] {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Scope, units.Bytes(n.Stored), units.Bytes(n.Own), units.Bytes(n.Shared), units.Bytes(n.Segments))
	}
	if more := len(names) - shown; more > 0 {
		fmt.Fprintf(w, "and %s more, which `--limit 0` shows\n", ask.Count(more, "name"))
	}
	fmt.Fprintf(w, "packs in use: %s, of which at least %s are dead; that no name needs: %s\n", amount(r.Live), units.Bytes(r.DeadWithin), amount(r.Dead))
	for _, s := range r.Scopes {
		fmt.Fprintf(w, "  in %s: %s; that no name needs: %s\n", s.Scope, amount(s.Live), amount(s.Dead))
	}
	fmt.Fprintf(w, "journals of volumes: %s; indexes: %s; records: %s\n", amount(r.Segments), amount(r.Indexes), amount(r.Records))
	for _, v := range r.Volumes {
		if v.Bytes > v.Named.Bytes {
			fmt.Fprintf(w, "  %s: %s, of which a record names %s\n", cmp.Or(v.Name, "a volume that is gone, "+v.ID), amount(v.Amount), units.Bytes(v.Named.Bytes))
		}
	}
	broken(w, r.Broken)
}
