package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/terminal"
)

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
