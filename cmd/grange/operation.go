package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"time"

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
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.ID, op.Kind, op.Target, op.State, progress(op), op.Started.Local().Format(time.DateTime), op.Error)
		}
	})
}

// operationArg is the argument of commands on one operation.
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
	for _, x := range [][2]string{{"note", op.Note}, {"error", op.Error}} {
		if x[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", x[0], x[1])
		}
	}
}

// progress is "1.0 MiB of 2.0 MiB".
func progress(op api.Operation) string {
	if op.Total == 0 {
		return humanBytes(op.Done)
	}
	return humanBytes(op.Done) + " of " + humanBytes(op.Total)
}

type operationCancelCmd struct{ operationArg }

func (c *operationCancelCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "DELETE", path: operationPath(c.ID)}, said("operation %s is told to end; `grange operation show %s` says when it has", c.ID, c.ID))
}
