package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/grangemesh/grange/node/api"
)

// lineInterval is how often progress is printed where there is no terminal.
const lineInterval = 2 * time.Second

// follow shows an operation until it ends and returns its error. When ctx is
// done, as by ctrl-C, the operation is cancelled.
func (c *client) follow(ctx context.Context, std stdio, op api.Operation) error {
	show := showLines(std.err)
	if f, ok := raw(std.err).(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		show = showBar(f, op)
	}
	last := op
	err := c.events(ctx, op.ID, func(now api.Operation) {
		last = now
		show(now)
	})
	if ctx.Err() != nil {
		return errors.Join(fmt.Errorf("%s %s: cancelled", op.Kind, op.Target),
			c.do(context.WithoutCancel(ctx), "DELETE", "/api/operations/"+op.ID, nil, nil))
	}
	if err != nil {
		return err
	}
	if last.State == "running" { // the stream ended early, as when the node stopped
		return fmt.Errorf("%s %s: lost sight of the operation; `grange status` says whether the node runs", op.Kind, op.Target)
	}
	if last.State == "failed" && strings.HasPrefix(last.Error, op.Kind+" ") { // it says what failed
		return errors.New(last.Error)
	}
	if last.State != "done" {
		return fmt.Errorf("%s %s %s: %s", op.Kind, op.Target, last.State, last.Error)
	}
	if last.Note != "" {
		last.Note = "; " + last.Note
	}
	_, err = fmt.Fprintf(std.out, "%s %s: done in %.1f s%s%s\n", op.Kind, op.Target, last.Took, bySource(last.Bytes), last.Note)
	return err
}

// bySource is ", 10 MiB farm, 2 MiB origin".
func bySource(bytes map[string]int64) string {
	var b strings.Builder
	for _, source := range slices.Sorted(maps.Keys(bytes)) {
		fmt.Fprintf(&b, ", %s %s", humanBytes(bytes[source]), source)
	}
	return b.String()
}

func showLines(w io.Writer) func(api.Operation) {
	var next time.Time
	return func(op api.Operation) {
		now := time.Now()
		if op.State != "running" || now.Before(next) {
			return
		}
		next = now.Add(lineInterval)
		total := ""
		if op.Total > 0 {
			total = " of " + humanBytes(op.Total)
		}
		line := fmt.Sprintf("%s %s: %s%s%s %s", op.Kind, op.Target, humanBytes(op.Done), total, bySource(op.Bytes), op.Note)
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func showBar(w io.Writer, op api.Operation) func(api.Operation) {
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetDescription(plain(op.Kind+" "+op.Target)), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	return func(op api.Operation) {
		if op.Total > 0 {
			bar.ChangeMax64(op.Total)
		}
		bar.Describe(plain(op.Kind + " " + op.Target + bySource(op.Bytes)))
		bar.Set64(op.Done)
		if op.State != "running" {
			bar.Finish()
		}
	}
}
