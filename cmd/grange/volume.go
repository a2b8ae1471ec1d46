package main

import (
	"context"
	"fmt"
	"io"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
)

type volumeCmd struct {
	Create volumeCreateCmd `cmd:"" help:"Create a volume from an image, or blank, and serve it."`
	Attach volumeAttachCmd `cmd:"" help:"Serve a volume that exists."`
	Ls     volumeLsCmd     `cmd:"" help:"List this node's volumes."`
	Show   volumeShowCmd   `cmd:"" help:"Show one volume."`
	Detach volumeDetachCmd `cmd:"" help:"Stop serving a volume; its data stays."`
	Rm     volumeRmCmd     `cmd:"" help:"Delete a volume; absent is success."`
}

func volumePath(name string) string { return "/api/volumes/" + content.Segment(name) }

type volumeCreateCmd struct {
	Name       string `arg:"" help:"The volume."`
	From       string `help:"What it begins as: image:NAME, of an image or a tag; a blank disk when not given." placeholder:"REF"`
	Size       size   `help:"Size; the image's when not given."`
	Transport  string `enum:"auto,nbd,ublk" default:"auto" help:"How it is served: ${enum}."`
	Durability string `default:"local" help:"What a flush means: local."`
	Readonly   bool   `help:"Refuse writes."`
}

func (c *volumeCreateCmd) Run(ctx context.Context, app *cli, std stdio) error {
	spec := api.VolumeSpec{Size: int64(c.Size), Transport: c.Transport, Durability: c.Durability, ReadOnly: c.Readonly}
	if c.From != "" {
		ref, err := content.ParseRef(c.From)
		if err != nil || ref.Kind != content.KindImage {
			return fmt.Errorf("%w: --from %s: a volume begins as an image: image:NAME, of an image or a tag", errUsage, c.From)
		}
		spec.From = ref
	}
	return app.putVolume(ctx, std, c.Name, spec)
}

type volumeAttachCmd struct {
	Name      string `arg:"" help:"The volume."`
	Transport string `enum:"auto,nbd,ublk" default:"auto" help:"How it is served: ${enum}; auto: as before."`
	Readonly  bool   `help:"Refuse writes until it is attached anew; so a damaged volume can be saved."`
}

func (c *volumeAttachCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return app.putVolume(ctx, std, c.Name, api.VolumeSpec{Transport: c.Transport, ReadOnly: c.Readonly})
}

// putVolume prints the device alone, for scripts to open.
func (c *cli) putVolume(ctx context.Context, std stdio, name string, spec api.VolumeSpec) error {
	if err := content.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return tell(ctx, c, std, request{"PUT", volumePath(name), spec}, func(w io.Writer, v api.Volume) {
		if v.Detail != "" {
			complain(std.err, fmt.Sprintf("volume %s is %s: %s", v.Name, v.State, v.Detail))
		}
		fmt.Fprintln(w, v.Device)
	})
}

type volumeLsCmd struct{}

func (c *volumeLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/volumes"}, func(w io.Writer, vols []api.Volume) {
		fmt.Fprintln(w, "NAME\tFARM\tSIZE\tFROM\tSTATE\tDIRTY\tDEVICE")
		for _, v := range vols {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.Farm, humanBytes(v.Size), v.From, v.State, known(v, v.DirtyBytes), v.Device)
		}
	})
}

type volumeShowCmd struct {
	Name string `arg:"" help:"The volume."`
}

func (c *volumeShowCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: volumePath(c.Name)}, func(w io.Writer, v api.Volume) {
		fmt.Fprintf(w, "name\t%s\nfarm\t%s\nstate\t%s %s\ndevice\t%s\nsize\t%s\nfrom\t%s\nroot\t%s\ndurability\t%s\nread-only\t%v\nepoch\t%d\ndirty\t%s\non this disk\t%s\n",
			v.Name, v.Farm, v.State, v.Detail, v.Device, humanBytes(v.Size), v.From, v.Root, v.Durability, v.ReadOnly, v.Epoch, known(v, v.DirtyBytes), known(v, v.DiskBytes))
		fmt.Fprintf(w, "read from\tcache %s, farm %s, swarm %s, origin %s\n",
			humanBytes(v.Bytes.Cache), humanBytes(v.Bytes.Farm), humanBytes(v.Bytes.Swarm), humanBytes(v.Bytes.Origin))
	})
}

// volumeEnd is what commands take that end the use of a volume.
type volumeEnd struct {
	Name  string `arg:"" help:"The volume."`
	Force bool   `env:"-" help:"Although it is in use: who uses it gets errors."`
}

// path is that of a deed, by its end behind the volume's.
func (v volumeEnd) path(deed string) string {
	if v.Force {
		deed += "?force=true"
	}
	return volumePath(v.Name) + deed
}

type volumeDetachCmd struct{ volumeEnd }

func (c *volumeDetachCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "POST", path: c.path("/detach")}, said("volume %s is detached; its data stays here", c.Name))
}

type volumeRmCmd struct{ volumeEnd }

func (c *volumeRmCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "DELETE", path: c.path("")}, said("there is no volume %s any more", c.Name))
}

// known is a figure that the node knows of volumes that are open.
func known(v api.Volume, bytes int64) string {
	if v.Device == "" {
		return "-"
	}
	return humanBytes(bytes)
}
