package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
)

// treeCmd has its own of what differs from images: a tree is named, tagged and kept as they are.
type treeCmd struct {
	Import  treeImportCmd  `cmd:"" help:"Publish a directory or tar file under a name, as a tree."`
	Ls      treeLsCmd      `cmd:"" help:"List trees and their tags."`
	Show    imageShowCmd   `cmd:"" help:"Show one tree or tag."`
	Tag     imageTagCmd    `cmd:"" help:"Let a tag stand for a tree."`
	Warm    imageWarmCmd   `cmd:"" help:"Fetch all of a tree into this node's cache, or those of its farm."`
	Pin     imagePinCmd    `cmd:"" help:"Keep a tree's chunks in this node's cache."`
	Unpin   imageUnpinCmd  `cmd:"" help:"Let a tree's chunks be evicted."`
	Verify  imageVerifyCmd `cmd:"" help:"Read all of a tree at the origin and check it."`
	Mount   treeMountCmd   `cmd:"" help:"Show a tree as a folder of the node's host, read-only; without a name list what is mounted."`
	Unmount treeUnmountCmd `cmd:"" help:"End a mount; absent is success."`
	Export  treeExportCmd  `cmd:"" help:"Write a tree into a folder."`
	Rm      imageRmCmd     `cmd:"" help:"Delete a tree or tag; absent is success."`
}

func treePath(name string) string { return "/api/trees/" + content.Segment(name) }

type treeImportCmd struct {
	Name    string `arg:"" help:"Name to publish under."`
	Source  string `arg:"" help:"A directory, a tar file as it is or compressed, or - for one from standard input."`
	Scope   string `help:"Who may read it: public, mesh or farm/NAME." default:"mesh"`
	Replace bool   `help:"Publish a new version of a tree that exists."`
}

func (c *treeImportCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	scope, err := publishing(c.Name, c.Scope)
	if err != nil {
		return err
	}
	source, free, err := sourceOf(app, std, c.Name, c.Source)
	if err != nil {
		return err
	}
	defer free()
	return app.Operate(ctx, std, "PUT", treePath(c.Name), api.ImportRequest{Options: convert.Options{Path: source}, Scope: scope, Replace: c.Replace})
}

type treeLsCmd struct{ ask.Choice }

func (c *treeLsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return listImages(ctx, app, std, c.Of("/api/trees"))
}

type treeMountCmd struct {
	Name string `arg:"" optional:"" help:"The tree or tag."`
	Dir  string `arg:"" optional:"" type:"path" help:"An empty folder on the node's host."`
}

func (c *treeMountCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	switch {
	case c.Name == "":
		return ask.List(ctx, app, std, "/api/mounts", func(w io.Writer, mounts []api.Mount) {
			fmt.Fprintln(w, "DIR\tNAME\tSINCE\tROOT\tERROR")
			for _, m := range mounts {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Dir, m.Name, m.Since.Local().Format(time.DateTime), m.CID, m.Error)
			}
		})
	case c.Dir == "":
		return fmt.Errorf("%w: say where: grange tree mount %s DIR", ask.ErrUsage, c.Name)
	}
	var raw json.RawMessage
	if err := app.Send(ctx, ask.Post(treePath(c.Name)+"/mounts", api.MountRequest{Dir: c.Dir}), &raw); err != nil {
		return err
	}
	if app.Remote == "" && hidden(c.Dir) {
		return errors.Join(fmt.Errorf("%s is mounted where the node alone sees it, and taken back: its unit gives it mounts of its own; of a package, see /usr/share/grange/instances.conf", c.Name),
			app.Send(ctx, ask.Delete(mountPath(c.Dir)), nil))
	}
	return ask.Show(app, std, raw, func(w io.Writer, m api.Mount) {
		fmt.Fprintf(w, "%s is at %s, which is %s\n", m.Name, m.Dir, m.CID)
	})
}

// hidden reports whether nothing is mounted at a folder, as this process sees it; false where that can't be told.
func hidden(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	mounts, failed := os.ReadFile("/proc/self/mountinfo")
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	return err == nil && failed == nil && !strings.Contains(string(mounts), " "+escaped+" ")
}

func mountPath(dir string) string { return "/api/mounts?dir=" + url.QueryEscape(dir) }

type treeUnmountCmd struct {
	Dir string `arg:"" type:"path" help:"Where the tree is mounted."`
}

func (c *treeUnmountCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Delete(mountPath(c.Dir)), ask.Said("nothing is mounted at %s", c.Dir))
}

type treeExportCmd struct {
	imageArg
	Dir   string `arg:"" type:"path" help:"A folder on the node's host that is empty, or not there."`
	Force bool   `env:"-" help:"Also into one that is not empty: what is in it and not in the tree goes."`
}

func (c *treeExportCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return app.Operate(ctx, std, "POST", treePath(c.Name)+"/export", api.ExportTreeRequest{Dir: c.Dir, Force: c.Force})
}
