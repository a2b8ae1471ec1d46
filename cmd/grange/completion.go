package main

import (
	"cmp"
	"context"
	"fmt"
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
		_, err = std.Out.Write(script)
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
	var found []struct {
		Snapshot string `json:"snapshot_id"`
		Name, ID string
	}
	if kind == "" || app.Ask(ctx, "GET", "/api/"+kind+"s", nil, &found) != nil {
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
	date := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" { // the commit's, so that pages are the same each time
				date, _, _ = strings.Cut(s.Value, "T")
			}
		}
	}
	return manual.Write(k.Model, c.Dir, date)
}
