package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
)

type imageCmd struct {
	Import imageImportCmd `cmd:"" help:"Publish a disk image, a directory or a tar file under a name."`
	Ls     imageLsCmd     `cmd:"" help:"List images and tags."`
	Show   imageShowCmd   `cmd:"" help:"Show one image or tag."`
	Tag    imageTagCmd    `cmd:"" help:"Let a tag stand for an image."`
	Warm   imageWarmCmd   `cmd:"" help:"Fetch all of an image into this node's cache."`
	Pin    imagePinCmd    `cmd:"" help:"Keep an image's chunks in this node's cache."`
	Unpin  imageUnpinCmd  `cmd:"" help:"Let an image's chunks be evicted."`
	Verify imageVerifyCmd `cmd:"" help:"Read all of an image at the origin and check it."`
	Export imageExportCmd `cmd:"" help:"Write an image to a file, sparse."`
	Rm     imageRmCmd     `cmd:"" help:"Delete an image or tag; absent is success."`
}

type imageImportCmd struct {
	Name    string `arg:"" help:"Name to publish under."`
	Source  string `arg:"" help:"A raw, qcow2, vmdk, vhdx, vhd, vdi, ova or tar file, as it is or compressed; a block device, a directory, or - for standard input."`
	Scope   string `help:"Who may read it: public, mesh or farm/NAME." default:"mesh"`
	Format  string `help:"Format of the source: ${enum}; raw takes any file as it is." enum:"auto,raw,qcow,qcow2,qed,vmdk,vhdx,vdi,vpc,parallels,tar,dir" default:"auto"`
	Replace bool   `help:"Publish a new version of an image that exists."`
	Size    size   `help:"Size of the file system for a directory or tar file; fitted when not given."`
}

func (c *imageImportCmd) Run(ctx context.Context, app *cli, std stdio) error {
	scope, err := content.ParseScope(c.Scope)
	if err != nil {
		return fmt.Errorf("%w: --scope: %w", errUsage, err)
	}
	if err := content.CheckName(c.Name); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	source := c.Source
	if source == "-" && app.remote() != "" {
		return fmt.Errorf("%w: standard input is here, and the node of GRANGE_API may be on another host: give it a path there", errUsage)
	}
	if source == "-" {
		spool, err := spoolStdin(app.Data, std.in)
		if err != nil {
			return err
		}
		defer os.Remove(spool)
		source = spool
	} else if source, err = filepath.Abs(source); err != nil {
		return err
	}
	return app.operate(ctx, std, "PUT", "/api/images/"+url.PathEscape(c.Name), api.ImportRequest{Source: source, Format: c.Format, Scope: scope, Replace: c.Replace, Size: int64(c.Size)})
}

// spoolStdin keeps standard input in a file, as formats are told apart and read
// at random. Blocks of zeros stay holes, so the file takes what the data takes. It
// lies where a start of the node clears away what a killed command has left.
func spoolStdin(data string, in io.Reader) (path string, err error) {
	f, err := os.CreateTemp(filepath.Join(data, node.TempDir), "stdin-*.spool")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no node has worked in %s yet; start one with `grange node`, or give --data", data)
	}
	if err != nil {
		return "", fmt.Errorf("keep standard input: %w", err)
	}
	defer f.Close()
	out := convert.Sparse{File: f}
	_, err = io.Copy(&out, in)
	if err = errors.Join(err, out.Finish()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("keep standard input in %s: %w", f.Name(), err)
	}
	return f.Name(), nil
}

// operate starts long work and follows it to its end.
func (c *cli) operate(ctx context.Context, std stdio, method, path string, body any) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	var op api.Operation
	if err := client.do(ctx, method, path, body, &op); err != nil {
		return err
	}
	return client.follow(ctx, std, op)
}

// ask sends one request and reads the answer into out.
func (c *cli) ask(ctx context.Context, method, path string, in, out any) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return client.do(ctx, method, path, in, out)
}

// query is what a listing asks for, and whether its document is wanted as it is.
type query struct {
	path string
	json bool
}

// list prints the API's document with --json, else a table of it.
func list[T any](ctx context.Context, app *cli, std stdio, q query, table func(w io.Writer, v T)) error {
	var raw json.RawMessage
	if err := app.ask(ctx, "GET", q.path, nil, &raw); err != nil {
		return err
	}
	return show(std, q.json, raw, table)
}

// show prints a document of the API as it is, or a table of it.
func show[T any](std stdio, asItIs bool, raw json.RawMessage, table func(w io.Writer, v T)) error {
	if asItIs {
		_, err := std.out.Write(raw)
		return err
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	table(w, v)
	return w.Flush()
}

type imageLsCmd struct {
	JSON bool `name:"json" help:"Print the API's document."`
}

func (c *imageLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return list(ctx, app, std, query{"/api/images", c.JSON}, func(w io.Writer, images []api.Image) {
		fmt.Fprintln(w, "NAME\tSIZE\tSTORED\tSCOPE\tVERSION\tSEEN\tROOT")
		for _, i := range images {
			name := i.Name
			if i.Target != "" {
				name += " → " + i.Target
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", name, humanBytes(i.Size), humanBytes(int64(i.Stored)), i.Scope, i.Version, seen(i), i.CID)
		}
	})
}

// seen is when the origin told of an image: "now", or how old what members know is.
func seen(i api.Image) string {
	age := time.Duration(i.Age * float64(time.Second)).Round(time.Second)
	switch {
	case !i.Confirmed:
		return fmt.Sprintf("%s ago, unconfirmed", age)
	case age == 0:
		return "now"
	}
	return fmt.Sprintf("%s ago", age)
}

type imageShowCmd struct {
	Name string `arg:""`
	JSON bool   `name:"json" help:"Print the API's document."`
}

func (c *imageShowCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return list(ctx, app, std, query{"/api/images/" + url.PathEscape(c.Name), c.JSON}, func(w io.Writer, i api.Image) {
		fmt.Fprintf(w, "name\t%s\nkind\t%s\nroot\t%s\nsize\t%s\nstored\t%s in %d chunks\nscope\t%s\nversion\t%d\nseen\t%s\nsigned\t%s\nsource\t%s\npinned\t%v\n",
			i.Name, i.Kind, i.CID, humanBytes(i.Size), humanBytes(int64(i.Stored)), i.Chunks, i.Scope, i.Version, seen(i), i.Signed.Local().Format(time.DateTime), i.Source, i.Pinned)
	})
}

type imageTagCmd struct {
	Name string `arg:"" help:"The image."`
	Tag  string `arg:"" help:"The tag, which stands for what the image is now."`
}

func (c *imageTagCmd) Run(ctx context.Context, app *cli, std stdio) error {
	var i api.Image
	if err := app.ask(ctx, "PUT", "/api/images/"+url.PathEscape(c.Name)+"/tags/"+url.PathEscape(c.Tag), nil, &i); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.out, "%s → %s, which is %s\n", i.Name, i.Target, i.CID)
	return err
}

type imageWarmCmd struct {
	Name string `arg:""`
}

func (c *imageWarmCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return app.operate(ctx, std, "POST", "/api/images/"+url.PathEscape(c.Name)+"/warm", nil)
}

type imagePinCmd struct {
	Name string `arg:""`
}

func (c *imagePinCmd) Run(ctx context.Context, app *cli) error {
	return app.ask(ctx, "PUT", "/api/images/"+url.PathEscape(c.Name)+"/pin", nil, nil)
}

type imageUnpinCmd struct {
	Name string `arg:""`
}

func (c *imageUnpinCmd) Run(ctx context.Context, app *cli) error {
	return app.ask(ctx, "DELETE", "/api/images/"+url.PathEscape(c.Name)+"/pin", nil, nil)
}

type imageVerifyCmd struct {
	Name string `arg:""`
}

func (c *imageVerifyCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return app.operate(ctx, std, "POST", "/api/images/"+url.PathEscape(c.Name)+"/verify", nil)
}

type imageExportCmd struct {
	Name  string `arg:""`
	File  string `arg:"" type:"path" help:"A file on the node's host, or - for standard output."`
	Force bool   `env:"-" help:"Replace a file that is there."`
}

func (c *imageExportCmd) Run(ctx context.Context, app *cli, std stdio) error {
	if c.File != "-" {
		return c.export(ctx, app, std, c.File)
	}
	if app.remote() != "" {
		return fmt.Errorf("%w: standard output is here, and the node of GRANGE_API may be on another host: give it a path there", errUsage)
	}
	spool := filepath.Join(app.Data, node.TempDir, "stdout-"+rand.Text()+".spool")
	defer os.Remove(spool) // the node may have made it though this command was given up
	if err := c.export(ctx, app, stdio{std.in, std.err, std.err}, spool); err != nil {
		return err
	}
	f, err := os.Open(spool)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(raw(std.out), f)
	return err
}

func (c *imageExportCmd) export(ctx context.Context, app *cli, std stdio, file string) error {
	return app.operate(ctx, std, "POST", "/api/images/"+url.PathEscape(c.Name)+"/export", api.ExportRequest{File: file, Force: c.Force})
}

type imageRmCmd struct {
	Name string `arg:""`
}

// Run says what became of the name, and of what was made from it.
func (c *imageRmCmd) Run(ctx context.Context, app *cli, std stdio) error {
	var r api.Removed
	if err := app.ask(ctx, "DELETE", "/api/images/"+url.PathEscape(c.Name), nil, &r); err != nil {
		return err
	}
	if r.Kind == "" {
		_, err := fmt.Fprintf(std.out, "no image or tag is called %s\n", c.Name)
		return err
	}
	fmt.Fprintf(std.out, "removed %s %s\n", r.Kind, c.Name)
	for _, tag := range r.Tags {
		fmt.Fprintf(std.out, "tag %s still stands for what it was\n", tag)
	}
	return nil
}
