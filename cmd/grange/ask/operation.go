package ask

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
)

// OperationPath is where the API has an operation.
func OperationPath(id string) string { return "/api/operations/" + url.PathEscape(id) }

// Progress is "1.0 MiB of 2.0 MiB", or "1 of 2 objects".
func Progress(op api.Operation) string {
	amount, unit := units.Bytes, ""
	if op.Unit != "" {
		amount, unit = func(n int64) string { return strconv.FormatInt(n, 10) }, " "+op.Unit
	}
	if op.Total == 0 {
		return amount(op.Done) + unit
	}
	return amount(op.Done) + " of " + amount(op.Total) + unit
}

// lineInterval is how often progress is printed where there is no terminal.
const lineInterval = 2 * time.Second

// ShowProgress draws a bar where a terminal has room for one, else prints lines.
func ShowProgress(w io.Writer, op api.Operation) (each func(api.Operation), end func()) {
	if n := terminal.Width(w); n >= barMin {
		return showBar(terminal.Raw(w), op, n)
	}
	return showLines(w), func() {}
}

// Operate starts long work and follows it to its end.
func (c *Node) Operate(ctx context.Context, std Stdio, method, path string, body any) error {
	var op api.Operation
	if err := c.Ask(ctx, method, path, body, &op); err != nil {
		return err
	}
	return c.Follow(ctx, std, op)
}

// Follow shows an operation until it ends and returns its error; ctx's end cancels it.
func (c *Node) Follow(ctx context.Context, std Stdio, op api.Operation) error {
	last, err := c.watch(ctx, std, op)
	if err != nil {
		return err
	}
	if c.JSON {
		if err := json.NewEncoder(std.Out).Encode(last); err != nil {
			return err
		}
	}
	if err := outcome(last); err != nil || c.JSON {
		return err
	}
	_, err = fmt.Fprintf(std.Out, "%s %s: done in %.1f s%s%s\n", last.Kind, last.Target, last.Took, BySource(last.Bytes), Prefixed("; ", last.Note))
	return err
}

// Report starts long work that has a result, follows it to its end, and prints that as Tell does: also that of work which
// failed, whose error it returns.
func Report[T any](ctx context.Context, app *Node, std Stdio, r Request, text func(w io.Writer, v T)) error {
	var op api.Operation
	if err := app.Send(ctx, r, &op); err != nil {
		return err
	}
	last, err := app.watch(ctx, std, op)
	if err != nil {
		return err
	}
	if err := app.Send(ctx, Get(OperationPath(op.ID)), &op); err != nil {
		return err
	}
	var results map[string]json.RawMessage // by kind
	if len(op.Result) > 0 {
		err = json.Unmarshal(op.Result, &results)
	}
	if result := results[op.Kind]; err == nil && result != nil {
		err = Show(app, std, result, text)
	}
	return cmp.Or(outcome(last), err)
}

// watch shows an operation until it ends, and returns it as it is then; ctx's end cancels it.
func (c *Node) watch(ctx context.Context, std Stdio, op api.Operation) (last api.Operation, err error) {
	to, err := c.Client()
	if err != nil {
		return op, err
	}
	each, end := ShowProgress(std.Err, op)
	last = op
	err = to.Events(ctx, op.ID, func(now api.Operation) {
		last = now
		each(now)
	})
	end()
	if ctx.Err() != nil {
		return last, errors.Join(fmt.Errorf("%s %s: cancelled", op.Kind, op.Target),
			c.Ask(context.WithoutCancel(ctx), "DELETE", OperationPath(op.ID), nil, nil))
	}
	return last, err
}

// FollowAside is Follow where something else than the operation is a command's output.
func (c *Node) FollowAside(ctx context.Context, std Stdio, op api.Operation) error {
	return (&Node{Data: c.Data, Remote: c.Remote}).Follow(ctx, std.Aside(), op)
}

// outcome is the error of an operation that was followed to its end.
func outcome(op api.Operation) error {
	switch {
	case op.State == "running": // the stream ended early, as when the node stopped
		return fmt.Errorf("%s %s: lost sight of the operation; `grange operation show %s` says what became of it", op.Kind, op.Target, op.ID)
	case op.State == "failed" && strings.HasPrefix(op.Error, op.Kind+" "): // it says what failed
		return errors.New(op.Error)
	case op.State != "done":
		return fmt.Errorf("%s %s %s: %s", op.Kind, op.Target, op.State, op.Error)
	}
	return nil
}

// BySource is ", 10 MiB farm, 2 MiB origin".
func BySource(bytes map[string]int64) string {
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
		fmt.Fprintf(w, "%s %s: %s%s%s\n", op.Kind, op.Target, Progress(op), BySource(op.Bytes), Prefixed("; ", op.Note))
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
		return terminal.Cut(terminal.Plain(op.Kind+" "+op.Target+BySource(op.Bytes)+Prefixed(": ", op.Note)), width-barStats)
	}
	bar, unit := (*progressbar.ProgressBar)(nil), op.Unit
	begin := func(op api.Operation) {
		unit = op.Unit
		bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(unit == ""), progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetDescription(title(op)), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	}
	begin(op)
	return func(op api.Operation) {
		if op.Unit != unit { // which the work says when it begins
			begin(op)
		}
		if op.Total > 0 {
			bar.ChangeMax64(op.Total)
		}
		bar.Describe(title(op))
		bar.Set64(op.Done)
	}, func() { bar.Finish(); bar.Clear() }
}
