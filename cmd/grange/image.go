package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/oci"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/cmd/grange/volume"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
)

type imageCmd struct {
	Import  imageImportCmd  `cmd:"" help:"Publish a disk image, a directory or a tar file under a name."`
	Ls      imageLsCmd      `cmd:"" help:"List images and tags."`
	Show    imageShowCmd    `cmd:"" help:"Show one image or tag."`
	Tag     imageTagCmd     `cmd:"" help:"Let a tag stand for an image."`
	Promote imagePromoteCmd `cmd:"" help:"Publish a volume or a snapshot as an image."`
	Profile imageProfileCmd `cmd:"" help:"Find out what boots of an image read, and lay it out so that they are fast where it never was."`
	Warm    imageWarmCmd    `cmd:"" help:"Fetch all of an image into this node's cache, or those of its farm."`
	Pin     imagePinCmd     `cmd:"" help:"Keep an image's chunks in this node's cache."`
	Unpin   imageUnpinCmd   `cmd:"" help:"Let an image's chunks be evicted."`
	Verify  imageVerifyCmd  `cmd:"" help:"Read all of an image at the origin and check it."`
	Export  imageExportCmd  `cmd:"" help:"Write an image to a file, sparse."`
	Rm      imageRmCmd      `cmd:"" help:"Delete an image or tag; absent is success."`
}

func imagePath(name string) string { return "/api/images/" + content.Segment(name) }

type imageImportCmd struct {
	Name      string         `arg:"" help:"Name to publish under."`
	Source    string         `arg:"" help:"A raw, qcow2, vmdk, vhdx, vhd, vdi, ova or tar file, as it is or compressed; oci-archive:FILE, or what docker save writes; oci:REFERENCE from its registry, with the credentials of docker's config file; a block device, a directory, or - for standard input."`
	Scope     string         `help:"Who may read it: public, mesh or farm/NAME." default:"mesh"`
	Format    convert.Format `help:"Format of the source, of which raw is any file as it is: ${formatlist}." enum:"${formats}" default:"auto"`
	Replace   bool           `help:"Publish a new version of an image that exists."`
	Size      units.Size     `help:"Size of the file system for a directory or tar file; fitted when not given."`
	Platform  string         `help:"Of a container image: which of its platforms, as linux/arm64; this host's when not given." env:"-"`
	PlainHTTP bool           `name:"plain-http" help:"Of oci:REFERENCE: its registry is asked without TLS, as one on loopback is." env:"-"`
	Profile   bool           `env:"-" help:"Then find out, in the background, what a boot of it reads, as image profile does."`
}

func (c *imageImportCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	scope, err := publishing(c.Name, c.Scope)
	if err != nil {
		return err
	}
	if file, ok := strings.CutPrefix(c.Source, "oci-archive:"); ok {
		c.Source, c.Format = file, convert.OCI
	}
	if ref, ok := strings.CutPrefix(c.Source, "oci:"); ok {
		archive, err := oci.Archive(ctx, ref, c.Platform, c.PlainHTTP)
		if err != nil {
			return err
		}
		defer archive.Close()
		c.Source, c.Format, std.In = ask.FromStdin, convert.OCI, archive
	}
	source, free, err := sourceOf(app, std, c.Name, c.Source)
	if err != nil {
		return err
	}
	defer free()
	err = app.Operate(ctx, std, "PUT", imagePath(c.Name), api.ImportRequest{Options: convert.Options{Path: source, Format: c.Format, Size: int64(c.Size), Platform: c.Platform}, Scope: scope, Replace: c.Replace})
	if err != nil || !c.Profile {
		return err
	}
	var op api.Operation
	if err := app.Send(ctx, ask.Post(imagePath(c.Name)+"/profile", nil), &op); err != nil {
		return fmt.Errorf("%s is published, and not profiled: %w", c.Name, err)
	}
	_, err = fmt.Fprintf(std.Err, "what a boot of it reads is found out in the background: `grange operation show %s`\n", op.ID)
	return err
}

// sourceOf is the path of what is to be imported; what stands for the standard input is kept there until it is freed.
func sourceOf(app *ask.Node, std ask.Stdio, name, source string) (path string, free func(), err error) {
	if source != ask.FromStdin {
		path, err = filepath.Abs(source)
		return path, func() {}, err
	}
	if app.Remote != "" {
		return "", nil, fmt.Errorf("%w: standard input is here, and the node of GRANGE_API may be on another host: give it a path there", ask.ErrUsage)
	}
	op := api.Operation{Kind: "import", Target: name, State: "running", Note: "reading the standard input"}
	each, end := ask.ShowProgress(std.Err, op)
	path, err = spoolStdin(app.Data, &watched{std.In, op, each})
	end()
	return path, func() { os.Remove(path) }, err
}

// publishing checks a name to publish under, and reads the scope.
func publishing(name, scope string) (content.Scope, error) {
	out, err := content.ParseScope(scope)
	if err != nil {
		return out, fmt.Errorf("%w: --scope: %w", ask.ErrUsage, err)
	}
	if err := content.KindImage.CheckName(name); err != nil {
		return out, fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	return out, nil
}

// watched shows how much was read.
type watched struct {
	io.Reader
	op   api.Operation
	each func(api.Operation)
}

func (r *watched) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.op.Done += int64(n)
	r.each(r.op)
	return n, err
}

// spoolStdin keeps standard input in a file, as formats are told apart and read at random. Blocks of zeros stay holes, so the
// file takes what the data takes. It lies where a start of the node clears away what a killed command has left.
func spoolStdin(data string, in io.Reader) (path string, err error) {
	folder := filepath.Join(data, images.TempDir)
	f, err := os.CreateTemp(folder, "stdin-*.spool")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no node has worked in %s yet; start one with `grange node`, or give --data", data)
	}
	if err != nil {
		return "", fmt.Errorf("keep standard input: %w", err)
	}
	defer f.Close()
	out := convert.Sparse{File: f, Room: images.WorkingRoom(folder)}
	_, err = io.Copy(&out, in)
	if err = errors.Join(giveTo(f, folder), err, out.Finish()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("keep standard input in %s: %w", f.Name(), err)
	}
	return f.Name(), nil
}

type imageLsCmd struct{ ask.Choice }

func (c *imageLsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return listImages(ctx, app, std, c.Of("/api/images"))
}

// listImages lists images, or trees. It says too when the list is not whole, which a short one does not show.
func listImages(ctx context.Context, app *ask.Node, std ask.Stdio, path string) error {
	err := ask.List(ctx, app, std, path, func(w io.Writer, images []api.Image) {
		fmt.Fprintln(w, "NAME\tSIZE\tSTORED\tSCOPE\tVERSION\tSEEN\tFOLLOWED\tROOT")
		for _, i := range images {
			name := i.Name
			if i.Target != "" {
				name += " → " + i.Target
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", name, units.Bytes(i.Size), units.Bytes(int64(i.Stored)), i.Scope, i.Version, seen(i), followed(i.Followed), i.CID)
		}
	})
	if err != nil {
		return err
	}
	if _, s, err := app.Status(ctx); err == nil && !originGood(s.Origin) {
		ask.Complain(std.Err, "this list may not be whole: the origin is "+s.Origin.State+ask.Prefixed(", ", s.Origin.Detail))
	}
	return nil
}

func originGood(o api.Origin) bool { return o.State == "ok" || o.State == "read-only" }

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

type imageArg struct {
	Name string `arg:"" help:"The image, tree or tag."`
}

type imageShowCmd struct{ imageArg }

func (c *imageShowCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(imagePath(c.Name)+"?holders=true"), func(w io.Writer, i api.Image) {
		fmt.Fprintf(w, "name\t%s\nkind\t%s\nroot\t%s\nsize\t%s\nstored\t%s in %d chunks\nscope\t%s\nversion\t%d\nseen\t%s\nsigned\t%s\nsource\t%s\npinned\t%v\n",
			i.Name, i.Kind, i.CID, units.Bytes(i.Size), units.Bytes(int64(i.Stored)), i.Chunks, i.Scope, i.Version, seen(i), i.Signed.Local().Format(time.DateTime), i.Source, i.Pinned)
		fmt.Fprintf(w, "read from\t%s (%.2f of it)\n", ask.Sources(i.Bytes), i.Copies)
		if i.Boot != nil {
			fmt.Fprintf(w, "boot list\t%s\n", bootList(*i.Boot))
		}
		for _, h := range i.Holders {
			share := 100 * float64(h.Chunks) / float64(max(i.Chunks, 1))
			fmt.Fprintf(w, "held by\t%s, farm %s: %s, %.0f %%%s\n", cmp.Or(h.Name, h.ID), cmp.Or(h.Farm, "none"), units.Bytes(h.Bytes), share, ask.Prefixed(", ", h.Way))
		}
		if s := i.Followed; s != nil {
			fmt.Fprintf(w, "followed\t%s%s%s\n", followed(s), ask.BySource(s.Bytes), ask.Prefixed(": ", s.Why))
		}
	})
}

// bootList says what an image's boots read first, and what became of that here.
func bootList(l api.BootList) string {
	text := fmt.Sprintf("%s, %s, of %s, made %s ago", ask.Count(l.Chunks, "chunk"), units.Bytes(int64(l.Stored)), ask.Count(l.Runs, "boot"), time.Since(l.Made).Round(time.Second))
	switch u := l.Use; {
	case u.Left:
		text += fmt.Sprintf("; left out on this node, as boots here have read %.0f %% of it alone", 100*u.Share)
	case u.Listed > 0:
		text += fmt.Sprintf("; %s here had it, and read %.0f %% of it", ask.Count(u.Listed, "boot"), 100*u.Share)
	}
	return text
}

type imageTagCmd struct {
	Name string `arg:"" help:"The image or tree."`
	Tag  string `arg:"" help:"The tag, which stands for what that is now."`
}

func (c *imageTagCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Put(imagePath(c.Name)+"/tags/"+content.Segment(c.Tag), nil), func(w io.Writer, i api.Image) {
		fmt.Fprintf(w, "%s → %s, which is %s\n", i.Name, i.Target, i.CID)
	})
}

type imageWarmCmd struct {
	imageArg
	All bool `help:"On all nodes of this node's farm." env:"-"`
}

func (c *imageWarmCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return app.Operate(ctx, std, "POST", imagePath(c.Name)+"/warm?all="+strconv.FormatBool(c.All), nil)
}

// imageProfileCmd has its flags from the command line alone, as instance provision has them.
type imageProfileCmd struct {
	imageArg
	Runs    int        `env:"-" default:"1" help:"How often it is booted on this node, in machines that are thrown away, up to 3; 0 takes what members' guests have read alone."`
	Memory  units.Size `env:"-" help:"What the machine has; 1G when not given." placeholder:"SIZE"`
	CPUs    int        `name:"cpus" env:"-" help:"Its processors; one when not given." placeholder:"N"`
	Kernel  string     `env:"-" type:"path" help:"A kernel on the node's host that is booted, in place of what the disk has for that." placeholder:"FILE"`
	Initrd  string     `env:"-" type:"path" help:"What that is given as its first disk." placeholder:"FILE"`
	Append  string     `env:"-" help:"And as its command line." placeholder:"TEXT"`
	Timeout units.Span `env:"-" help:"How long a boot may take; 5m when not given. Without KVM boots take minutes."`
	Quiet   units.Span `env:"-" help:"A boot is over when its console asks for a login, or it has read nothing new for so long; 1m when not given."`
}

func (c *imageProfileCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	spec := api.ProfileSpec{
		Runs: &c.Runs, Memory: int64(c.Memory), CPUs: c.CPUs, Kernel: c.Kernel, Initrd: c.Initrd, Append: c.Append,
		Timeout: terms.Seconds(time.Duration(c.Timeout).Seconds()), Quiet: terms.Seconds(time.Duration(c.Quiet).Seconds()),
	}
	if _, err := spec.WithDefaults(); err != nil {
		return fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	return app.Operate(ctx, std, "POST", imagePath(c.Name)+"/profile", spec)
}

type imagePinCmd struct{ imageArg }

func (c *imagePinCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Put(imagePath(c.Name)+"/pin", nil), ask.Said("pinned %s", c.Name))
}

type imageUnpinCmd struct{ imageArg }

func (c *imageUnpinCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Delete(imagePath(c.Name)+"/pin"), ask.Said("%s is pinned no more", c.Name))
}

type imageVerifyCmd struct{ imageArg }

func (c *imageVerifyCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return app.Operate(ctx, std, "POST", imagePath(c.Name)+"/verify", nil)
}

type imagePromoteCmd struct {
	Ref     string `arg:"" help:"volume:NAME, volume:NAME?at=folded, snapshot:NAME@N, NAME or NAME@N."`
	Name    string `arg:"" help:"The image."`
	Scope   string `help:"Who may read it: public, mesh or farm/NAME." default:"mesh"`
	Replace bool   `help:"Publish a new version of an image that exists."`
}

func (c *imagePromoteCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	scope, err := publishing(c.Name, c.Scope)
	if err != nil {
		return err
	}
	path, err := volume.DiskPath(c.Ref, "/promote")
	if err != nil {
		return err
	}
	return app.Operate(ctx, std, "POST", path, api.PromoteSpec{Image: c.Name, Scope: scope, Replace: c.Replace})
}

type imageExportCmd struct {
	imageArg
	ask.ExportTo
}

func (c *imageExportCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return c.Export(ctx, app, std, imagePath(c.Name)+"/export")
}

type imageRmCmd struct{ imageArg }

// Run says what became of the name, and of what was made from it.
func (c *imageRmCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Delete(imagePath(c.Name)), func(w io.Writer, r api.Removed) {
		if r.Kind == "" {
			fmt.Fprintf(w, "no image, tree or tag is called %s\n", c.Name)
			return
		}
		fmt.Fprintf(w, "removed %s %s\n", r.Kind, c.Name)
		for _, tag := range r.Tags {
			fmt.Fprintf(w, "tag %s still stands for what it was\n", tag)
		}
	})
}

type cacheCmd struct {
	Show  cacheShowCmd  `cmd:"" help:"Say how full the cache is."`
	Evict cacheEvictCmd `cmd:"" help:"Make room: remove the least useful chunks that are not pinned."`
}

type cacheShowCmd struct{}

func (c *cacheShowCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get("/api/cache"), func(w io.Writer, k api.Cache) {
		fmt.Fprintf(w, "chunks\t%d\nused\t%s of %s\nfull\t%v\n", k.Chunks, units.Bytes(k.Used), units.Bytes(k.Quota), k.Full)
	})
}

type cacheEvictCmd struct {
	Size units.Size `arg:"" help:"How much to remove."`
}

func (c *cacheEvictCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Post("/api/cache/evict", api.EvictRequest{Bytes: int64(c.Size)}), func(w io.Writer, e api.Evicted) {
		fmt.Fprintf(w, "removed %s; %d chunks are left, in %s\n", units.Bytes(e.Freed), e.Cache.Chunks, units.Bytes(e.Cache.Used))
	})
}
