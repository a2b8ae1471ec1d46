package profile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/root"
	"github.com/grangemesh/grange/node/boots/throwaway"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/node/images"
)

// run boots an image once, and returns what that has read, in the order of first touch; said is what is to be known of it.
// All that it needs is in a folder of working files, which a start of the node clears away if a crash has left it: no name is
// taken, and nothing is written to the origin.
func (p *Profiles) run(ctx context.Context, image *fetch.Image, s Spec, each func(touched int)) (_ []uint64, said []string, err error) {
	dir, err := os.MkdirTemp(filepath.Join(p.cfg.Dir, images.TempDir), "boot") // short, as a socket's path is to be
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var trace *touch.Trace
	record := func() {
		trace = touch.New(image.Root().Shape().Chunks, func() {})
		image.Record(trace)
	}
	record()
	defer image.Record(nil)
	device, end, err := p.serve(ctx, dir, image)
	if err != nil {
		return nil, nil, err
	}
	how, err := throwaway.Boot(ctx, throwaway.Config{
		Device: device, Dir: dir, Room: func() error { return images.WorkingRoom(dir)(0) }, Accel: p.cfg.Emulator, Memory: s.Memory, CPUs: s.CPUs, Kernel: s.Kernel, Initrd: s.Initrd, Append: s.Append,
		Touched: func() int {
			n := len(trace.Chunks())
			each(n)
			return n
		},
		Least: touch.Least, Timeout: s.Timeout.Duration(), Quiet: s.Quiet.Duration(),
		Again: func(why error) {
			record()
			p.cfg.Log.Warn("a machine is booted once more, without KVM", "image", image.ID(), "err", why)
			said = append(said, "KVM of this host can't run the machine, so it was booted without")
		},
	})
	if err = errors.Join(err, end()); err == nil && how == throwaway.Late {
		said = append(said, fmt.Sprintf("%s, and what it had read until then counts: give it longer with --timeout", how))
	}
	return trace.Chunks(), said, err
}

// inTurn is an image whose bytes come after those that guests wait for.
type inTurn struct {
	root.Source
	read func(ctx context.Context, index uint64, off int, p []byte) error
}

func (i inTurn) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	return i.read(ctx, index, off, p)
}

// serve has an image be a disk that can only be read, on a socket in dir, until end is called.
func (p *Profiles) serve(ctx context.Context, dir string, image *fetch.Image) (device string, end func() error, err error) {
	cfg := volume.Config{
		Dir: filepath.Join(dir, "disk"), Size: image.Root().Size, Source: inTurn{image, image.ReadInTurn}, SourceSize: image.Root().Size, ChunkSize: image.Root().ChunkSize, ReadOnly: true, Log: p.cfg.Log,
	}
	rand.Read(cfg.ID[:])
	if err := volume.Create(cfg.Dir, cfg.ID); err != nil {
		return "", nil, err
	}
	vol, err := volume.Open(cfg)
	if err != nil {
		return "", nil, err
	}
	l, err := nbd.Listen(ctx, "unix:"+filepath.Join(dir, "s"))
	if err != nil {
		return "", nil, errors.Join(err, vol.Close())
	}
	server, err := nbd.New(nbd.Config{Exports: only{vol}, Listeners: []net.Listener{l}, Log: p.cfg.Log})
	if err != nil {
		return "", nil, errors.Join(err, l.Close(), vol.Close())
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(serving) }()
	return nbd.URI(l.Addr(), exportName), func() error {
		stop()
		return errors.Join(<-ended, vol.Close())
	}, nil
}

// exportName is what the disk is called.
const exportName = "disk"

// only is the one export of a server.
type only struct{ blockdev.Device }

func (o only) Lookup(context.Context, string) (blockdev.Device, func(), error) {
	return o.Device, func() {}, nil
}

func (o only) List(context.Context) ([]string, error) { return []string{exportName}, nil }
