package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/complete"
	"github.com/grangemesh/grange/cmd/grange/manual"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: ${enum}."`
}

func (c *completionCmd) Run(std ask.Stdio) error {
	script, err := complete.Script(c.Shell)
	if err == nil {
		_, err = io.WriteString(std.Out, script)
	}
	return err
}

// completeCmd is what the scripts ask.
type completeCmd struct {
	Words []string `arg:"" optional:"" help:"What was typed, behind --; the last word is completed."`
}

// namesTimeout is how long somebody who pressed a key waits for names.
const namesTimeout = 500 * time.Millisecond

func (c *completeCmd) Run(ctx context.Context, k *kong.Kong, app *ask.Node, std ask.Stdio) error {
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	for i, word := range c.Words[:max(0, len(c.Words)-1)] { // the node that the line means
		if data, ok := strings.CutPrefix(word, "--data="); ok {
			*app = ask.Node{Data: data}
		} else if word == "--data" {
			*app = ask.Node{Data: c.Words[i+1]}
		}
	}
	for _, found := range complete.Of(k.Model, c.Words, func(kind string) []string { return namesOf(ctx, app, kind) }) {
		if _, err := fmt.Fprintf(std.Out, "%s\t%s\n", found.Word, found.Help); err != nil {
			return err
		}
	}
	return nil
}

// namesOf asks the node; one that does not answer has none.
func namesOf(ctx context.Context, app *ask.Node, kind string) (out []string) {
	path := map[string]string{
		"image": "images", "tree": "trees", "volume": "volumes", "snapshot": "snapshots", "instance": "instances",
		"operation": "operations", "token": "tokens", "members": "members",
	}[kind]
	var found []struct {
		Snapshot string `json:"snapshot_id"`
		Name     string `json:"name"`
		ID       string `json:"id"`
	}
	if path == "" || app.Ask(ctx, "GET", "/api/"+path, nil, &found) != nil {
		return nil
	}
	for _, x := range found {
		out = append(out, cmp.Or(x.Snapshot, x.Name, x.ID))
	}
	return out
}

// manualCmd is run when packages are made.
type manualCmd struct {
	Dir string `arg:"" type:"existingdir" help:"Where the pages are written."`
}

func (c *manualCmd) Run(k *kong.Kong) error {
	m := manual.Manual{Version: "grange", About: [][2]string{
		{"FILES", "/etc/grange/grange.yaml: settings, by the names of flags.\n\n/var/lib/grange: the data of a node."},
		{"EXIT STATUS", "0 when done, 1 when not, 2 for a command line that makes no sense."},
	}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" && len(s.Value) >= len(time.DateOnly) {
				m.Date = s.Value[:len(time.DateOnly)]
			}
		}
	}
	return m.Write(k.Model, c.Dir)
}
