package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
)

type operationCmd struct {
	Ls     operationLsCmd     `cmd:"" help:"List this node's long work, newest first."`
	Show   operationShowCmd   `cmd:"" help:"Show one operation."`
	Cancel operationCancelCmd `cmd:"" help:"Cancel one that runs."`
}

func operationPath(id string) string { return "/api/operations/" + url.PathEscape(id) }

type operationLsCmd struct{}

func (c *operationLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/operations"}, func(w io.Writer, ops []api.Operation) {
		fmt.Fprintln(w, "ID\tKIND\tTARGET\tSTATE\tDONE\tSTARTED\tERROR")
		for _, op := range ops {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.ID, op.Kind, op.Target, op.State, progress(op), moment(op.Started), op.Error)
		}
	})
}

type operationArg struct {
	ID string `arg:"" help:"As operation ls has it."`
}

type operationShowCmd struct{ operationArg }

func (c *operationShowCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: operationPath(c.ID)}, operationTable)
}

func operationTable(w io.Writer, op api.Operation) {
	fmt.Fprintf(w, "id\t%s\nkind\t%s\ntarget\t%s\nstate\t%s\ndone\t%s%s\nstarted\t%s\n", op.ID, op.Kind, op.Target, op.State, progress(op), bySource(op.Bytes), op.Started.Local().Format(time.DateTime))
	if op.ETA > 0 {
		fmt.Fprintf(w, "left\tabout %s\n", time.Duration(op.ETA*float64(time.Second)).Round(time.Second))
	}
	if !op.Ended.IsZero() {
		fmt.Fprintf(w, "ended\t%s\n", op.Ended.Local().Format(time.DateTime))
	}
	for _, name := range slices.Sorted(maps.Keys(op.Nodes)) {
		n := op.Nodes[name]
		fmt.Fprintf(w, "on %s\t%s, %s%s%s\n", name, n.State, progress(api.Operation{Done: n.Done, Total: n.Total}), bySource(n.Bytes), prefixed(": ", n.Error))
	}
	for _, x := range [][2]string{{"note", op.Note}, {"error", op.Error}} {
		if x[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", x[0], x[1])
		}
	}
}

// moment is a time for a list, without its date where that is plain.
func moment(t time.Time) string {
	if time.Since(t).Abs() < 12*time.Hour {
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format(time.DateTime)
}

// progress is "1.0 MiB of 2.0 MiB".
func progress(op api.Operation) string {
	if op.Total == 0 {
		return units.Bytes(op.Done)
	}
	return units.Bytes(op.Done) + " of " + units.Bytes(op.Total)
}

type operationCancelCmd struct{ operationArg }

func (c *operationCancelCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "DELETE", path: operationPath(c.ID)}, said("operation %s is told to end; `grange operation show %s` says when it has", c.ID, c.ID))
}

// lineInterval is how often progress is printed where there is no terminal.
const lineInterval = 2 * time.Second

// showProgress draws a bar where a terminal has room for one, else prints lines.
func showProgress(w io.Writer, op api.Operation) (each func(api.Operation), end func()) {
	if n := terminal.Width(w); n >= barMin {
		return showBar(terminal.Raw(w), op, n)
	}
	return showLines(w), func() {}
}

// follow shows an operation until it ends and returns its error; ctx's end cancels it.
func (c *cli) follow(ctx context.Context, std stdio, op api.Operation) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	each, end := showProgress(std.err, op)
	last := op
	err = to.Events(ctx, op.ID, func(now api.Operation) {
		last = now
		each(now)
	})
	end()
	if ctx.Err() != nil {
		return errors.Join(fmt.Errorf("%s %s: cancelled", op.Kind, op.Target),
			c.ask(context.WithoutCancel(ctx), "DELETE", operationPath(op.ID), nil, nil))
	}
	if err != nil {
		return err
	}
	if c.JSON {
		if err := json.NewEncoder(std.out).Encode(last); err != nil {
			return err
		}
	}
	return c.outcome(std, last)
}

func (c *cli) outcome(std stdio, op api.Operation) error {
	switch {
	case op.State == "running": // the stream ended early, as when the node stopped
		return fmt.Errorf("%s %s: lost sight of the operation; `grange operation show %s` says what became of it", op.Kind, op.Target, op.ID)
	case op.State == "failed" && strings.HasPrefix(op.Error, op.Kind+" "): // it says what failed
		return errors.New(op.Error)
	case op.State != "done":
		return fmt.Errorf("%s %s %s: %s", op.Kind, op.Target, op.State, op.Error)
	case c.JSON:
		return nil
	}
	_, err := fmt.Fprintf(std.out, "%s %s: done in %.1f s%s%s\n", op.Kind, op.Target, op.Took, bySource(op.Bytes), prefixed("; ", op.Note))
	return err
}

// bySource is ", 10 MiB farm, 2 MiB origin".
func bySource(bytes map[string]int64) string {
	var b strings.Builder
	for _, source := range slices.Sorted(maps.Keys(bytes)) {
		fmt.Fprintf(&b, ", %s %s", units.Bytes(bytes[source]), source)
	}
	return b.String()
}

func showLines(w io.Writer) func(api.Operation) {
	var next time.Time
	return func(op api.Operation) {
		now := time.Now()
		if op.State != "running" || now.Before(next) || op.Done == 0 && op.Total == 0 && op.Note == "" {
			return
		}
		next = now.Add(lineInterval)
		fmt.Fprintf(w, "%s %s: %s%s%s\n", op.Kind, op.Target, progress(op), bySource(op.Bytes), prefixed("; ", op.Note))
	}
}

const (
	// barMin is the narrowest terminal that a bar fits, barStats what it takes itself.
	barMin   = 72
	barStats = 56
)

// showBar draws a bar, which end takes away.
func showBar(w io.Writer, op api.Operation, width int) (each func(api.Operation), end func()) {
	title := func(op api.Operation) string {
		return terminal.Cut(terminal.Plain(op.Kind+" "+op.Target+bySource(op.Bytes)), width-barStats)
	}
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetDescription(title(op)), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	return func(op api.Operation) {
		if op.Total > 0 {
			bar.ChangeMax64(op.Total)
		}
		bar.Describe(title(op))
		bar.Set64(op.Done)
	}, func() { bar.Finish(); bar.Clear() }
}
