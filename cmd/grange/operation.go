package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

type operationCmd struct {
	Ls     operationLsCmd     `cmd:"" help:"List this node's long work, newest first."`
	Show   operationShowCmd   `cmd:"" help:"Show one operation."`
	Cancel operationCancelCmd `cmd:"" help:"Cancel one that runs."`
	Pause  operationPauseCmd  `cmd:"" help:"Have one wait that brings files in, or puts them away: of a tree or of an instance."`
	Resume operationPauseCmd  `cmd:"" help:"Have it go on."`
}

type operationLsCmd struct{ ask.Choice }

func (c *operationLsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(c.Of("/api/operations")), func(w io.Writer, ops []api.Operation) {
		fmt.Fprintln(w, "ID\tKIND\tTARGET\tSTATE\tDONE\tSTARTED\tERROR")
		for _, op := range ops {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.ID, op.Kind, op.Target, op.State, ask.Progress(op), ask.Moment(op.Started), op.Error)
		}
	})
}

type operationArg struct {
	ID string `arg:"" help:"As operation ls has it."`
}

type operationShowCmd struct{ operationArg }

func (c *operationShowCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(ask.OperationPath(c.ID)), operationTable)
}

func operationTable(w io.Writer, op api.Operation) {
	fmt.Fprintf(w, "id\t%s\nkind\t%s\ntarget\t%s\nstate\t%s\ndone\t%s%s\nstarted\t%s\n", op.ID, op.Kind, op.Target, op.State, ask.Progress(op), ask.BySource(op.Bytes), op.Started.Local().Format(time.DateTime))
	if op.ETA > 0 {
		fmt.Fprintf(w, "left\tabout %s\n", time.Duration(op.ETA*float64(time.Second)).Round(time.Second))
	}
	if !op.Ended.IsZero() {
		fmt.Fprintf(w, "ended\t%s\n", op.Ended.Local().Format(time.DateTime))
	}
	for _, name := range slices.Sorted(maps.Keys(op.Nodes)) {
		n := op.Nodes[name]
		fmt.Fprintf(w, "on %s\t%s, %s%s%s\n", name, n.State, ask.Progress(api.Operation{Done: n.Done, Total: n.Total}), ask.BySource(n.Bytes), ask.Prefixed(": ", n.Error))
	}
	for _, x := range [][2]string{{"paused", map[bool]string{true: "yes"}[op.Paused]}, {"note", op.Note}, {"error", op.Error}} {
		if x[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", x[0], x[1])
		}
	}
}

// operationPauseCmd pauses or resumes, as it is called.
type operationPauseCmd struct{ operationArg }

func (c *operationPauseCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio, command *kong.Context) error {
	return ask.Tell(ctx, app, std, ask.Post(ask.OperationPath(c.ID)+"/"+command.Selected().Name, nil), operationTable)
}

type operationCancelCmd struct{ operationArg }

func (c *operationCancelCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Delete(ask.OperationPath(c.ID)), ask.Said("operation %s is told to end; `grange operation show %s` says when it has", c.ID, c.ID))
}
