// Package ask has what commands share that ask a node: how it is asked, and how its answers, and its long work, are shown. It
// knows no command.
package ask

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node/api"
)

// ErrUsage marks errors in the command line, which exit with 2.
var ErrUsage = errors.New("usage")

// Node is the node that a command asks, and how its answers are shown.
type Node struct {
	// Data is the folder of its data.
	Data string
	// Remote is the address of a node that need not be on this host, or "".
	Remote string
	// JSON says that the API's documents are printed as they are.
	JSON bool
}

// Client asks the node of Remote, else that of Data, over its socket.
func (c *Node) Client() (*client.Client, error) {
	return client.New(client.Config{Data: c.Data, Remote: c.Remote, Token: os.Getenv("GRANGE_TOKEN"), Certificate: os.Getenv("GRANGE_CERT")})
}

// Ask sends in as JSON and reads the answer into out; either may be nil.
func (c *Node) Ask(ctx context.Context, method, path string, in, out any) error {
	to, err := c.Client()
	if err != nil {
		return err
	}
	return to.Ask(ctx, method, path, in, out)
}

// Request is one that the API is asked.
type Request struct {
	method, path string
	body         any
}

// Get asks for what is at a path of the API.
func Get(path string) Request { return Request{"GET", path, nil} }

// Put sends a body, or nil, to a path.
func Put(path string, body any) Request { return Request{"PUT", path, body} }

// Post sends a body, or nil, to a path.
func Post(path string, body any) Request { return Request{"POST", path, body} }

// Delete asks for what is at a path to be removed.
func Delete(path string) Request { return Request{"DELETE", path, nil} }

// Send sends a request and reads the answer into out, which may be nil.
func (c *Node) Send(ctx context.Context, r Request, out any) error {
	return c.Ask(ctx, r.method, r.path, r.body, out)
}

// Tell asks the API and prints its document with --json, else the text that is made of it, with columns where it has tabs.
func Tell[T any](ctx context.Context, app *Node, std Stdio, r Request, text func(w io.Writer, v T)) error {
	var raw json.RawMessage
	if err := app.Send(ctx, r, &raw); err != nil {
		return err
	}
	return Show(app, std, raw, text)
}

// Choice is what commands take that list.
type Choice struct {
	Match string `env:"-" help:"Those alone that have this in their name or another of their texts, whatever the case." placeholder:"TEXT"`
	Sort  string `env:"-" help:"By this member of theirs, as --json has it, the least first; with - before it the greatest." placeholder:"MEMBER"`
}

// Of is the path of a list, of those that are wanted.
func (c Choice) Of(path string) string {
	query := url.Values{}
	for name, value := range map[string]string{"match": c.Match, "sort": c.Sort} {
		if value != "" {
			query.Set(name, value)
		}
	}
	switch {
	case len(query) == 0:
		return path
	case strings.Contains(path, "?"):
		return path + "&" + query.Encode()
	}
	return path + "?" + query.Encode()
}

// List asks for a list, all of its pages, and prints it as Tell does.
func List[T any](ctx context.Context, app *Node, std Stdio, path string, text func(w io.Writer, v []T)) error {
	to, err := app.Client()
	if err != nil {
		return err
	}
	raw, err := to.Pages(ctx, path)
	if err != nil {
		return err
	}
	return Show(app, std, raw, text)
}

// Show prints a document of the API; an empty one is of an answer without any.
func Show[T any](app *Node, std Stdio, raw json.RawMessage, text func(w io.Writer, v T)) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if app.JSON {
		_, err := fmt.Fprintf(std.Out, "%s\n", raw)
		return err
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	var b strings.Builder
	text(&b, v)
	_, err := io.WriteString(std.Out, terminal.Columns(b.String(), terminal.Width(std.Out)))
	return err
}

// Said prints one line when something was done that has no document.
func Said(format string, args ...any) func(io.Writer, struct{}) {
	return func(w io.Writer, _ struct{}) { fmt.Fprintf(w, format+"\n", args...) }
}

// Complain prints an error: each of several on its own line, wrapped on a terminal.
func Complain(w io.Writer, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, terminal.Wrap("grange: "+strings.TrimSuffix(line, "\n"), terminal.Width(w)))
	}
}

// Status asks how the node stands, and returns the document too.
func (c *Node) Status(ctx context.Context) (raw json.RawMessage, s api.Status, err error) {
	if err = c.Ask(ctx, "GET", "/api/status", nil, &raw); err == nil {
		err = json.Unmarshal(raw, &s)
	}
	return raw, s, err
}
