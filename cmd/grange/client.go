package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/terminal"
)

// remote is the address of a node that need not be on this host, or "".
func (c *cli) remote() string {
	if c.dataGiven {
		return ""
	}
	return os.Getenv("GRANGE_API")
}

// client asks the node of the data folder on the command line, over its socket, else
// GRANGE_API's, else that of the data folder set otherwise.
func (c *cli) client() (*client.Client, error) {
	return client.New(client.Config{Data: c.Data, Remote: c.remote(), Token: os.Getenv("GRANGE_TOKEN"), Certificate: os.Getenv("GRANGE_CERT")})
}

// ask sends in as JSON and reads the answer into out; either may be nil.
func (c *cli) ask(ctx context.Context, method, path string, in, out any) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	return to.Ask(ctx, method, path, in, out)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// request is one that the API is asked.
type request struct {
	method, path string
	body         any
}

// tell asks the API and prints its document with --json, else the text that is made of
// it, with columns where it has tabs.
func tell[T any](ctx context.Context, app *cli, std stdio, r request, text func(w io.Writer, v T)) error {
	var raw json.RawMessage
	if err := app.ask(ctx, r.method, r.path, r.body, &raw); err != nil {
		return err
	}
	return show(app, std, raw, text)
}

// list asks for a list, all of its pages, and prints it as tell does.
func list[T any](ctx context.Context, app *cli, std stdio, path string, text func(w io.Writer, v []T)) error {
	to, err := app.client()
	if err != nil {
		return err
	}
	raw, err := to.Pages(ctx, path)
	if err != nil {
		return err
	}
	return show(app, std, raw, text)
}

// show prints a document of the API; an empty one is of an answer without any.
func show[T any](app *cli, std stdio, raw json.RawMessage, text func(w io.Writer, v T)) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if app.JSON {
		_, err := fmt.Fprintf(std.out, "%s\n", raw)
		return err
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	var b strings.Builder
	text(&b, v)
	_, err := io.WriteString(std.out, terminal.Columns(b.String(), terminal.Width(std.out)))
	return err
}

// said prints one line when something was done that has no document.
func said(format string, args ...any) func(io.Writer, struct{}) {
	return func(w io.Writer, _ struct{}) { fmt.Fprintf(w, format+"\n", args...) }
}

// complain prints an error: each of several on its own line, wrapped on a terminal.
func complain(w io.Writer, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, terminal.Wrap("grange: "+strings.TrimSuffix(line, "\n"), terminal.Width(w)))
	}
}
