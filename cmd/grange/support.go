package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/support"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
)

type supportCmd struct {
	File string `arg:"" optional:"" type:"path" help:"Where to write the archive, a .tar.gz; - is the standard output. In this folder, by host and time, when not given."`
}

// Help is what support --help says beside.
func (*supportCmd) Help() string {
	return "It has version, settings, status, findings of the doctor, volumes, instances, operations, members, metrics, what the node is at, its log, and facts of the host. Secrets are taken out: tokens, keys, credentials, passwords in URLs, what instances are told in their environment. It works without a node too, says what it could not get, and asks nobody but this host and the node."
}

// Run writes the archive, which its user alone may read.
func (s *supportCmd) Run(ctx context.Context, c *cli, app *ask.Node, std ask.Stdio) (err error) {
	asked, err := app.Client()
	if err != nil { // as of a remote node whose token is not known
		asked = nil
	}
	cfg := support.Config{Client: asked, Here: app.Remote == "", Data: c.Data, ConfigFile: string(c.Config), Version: version(), Env: os.Environ(), Doctor: func(ctx context.Context) ([]byte, error) {
		findings, _ := c.findings(ctx, app)
		return json.MarshalIndent(findings, "", "  ")
	}}
	if s.File == "" {
		host, _ := os.Hostname()
		s.File = strings.Trim(fmt.Sprintf("grange-support-%s-%s.tar.gz", host, time.Now().Format("20060102-150405")), "-")
	}
	if s.File == ask.FromStdin {
		_, err := cfg.Write(ctx, terminal.Raw(std.Out))
		return err
	}
	f, err := os.OpenFile(s.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("support: %w", err)
	}
	missing, err := cfg.Write(ctx, f)
	size, serr := f.Seek(0, io.SeekCurrent)
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("support: %w", err), os.Remove(s.File))
	}
	doc, err := json.Marshal(map[string]any{"file": s.File, "bytes": size, "missing": missing})
	if err != nil {
		return err
	}
	return ask.Show(app, std, doc, func(w io.Writer, _ any) {
		fmt.Fprintf(w, "%s has %s; look through it before you pass it on\n", s.File, units.Bytes(size))
		for _, name := range slices.Sorted(maps.Keys(missing)) {
			fmt.Fprintf(w, "without %s:\t%s\n", name, missing[name])
		}
	})
}
