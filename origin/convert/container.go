package convert

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/layers"
)

// isContainer reports whether a tar file is an archive of a container image. One that is cut short is none.
func isContainer(s *source) (bool, error) {
	for r := tar.NewReader(io.NewSectionReader(s, 0, s.Size())); ; {
		h, err := r.Next()
		switch {
		case err != nil:
			return false, s.unchanged()
		case layers.IsImage(path.Clean(h.Name)):
			return true, nil
		}
	}
}

// ofContainer makes a disk of the files of a container image: its layers, which are inflated by children as all that is
// compressed, become one tar file.
func (o Options) ofContainer(ctx context.Context, s *source) (Disk, error) {
	all, err := layers.Find(s, s.Size(), o.Platform)
	if err != nil {
		return nil, err
	}
	var plain []*io.SectionReader
	for i, l := range all {
		o.Note(fmt.Sprintf("inflating layer %d of %d", i+1, len(all)))
		p, err := o.plain(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Name, err)
		}
		defer p.Close()
		plain = append(plain, io.NewSectionReader(p, 0, p.Size()))
	}
	o.Note("laying the layers over each other")
	f, err := os.CreateTemp(o.Temp, "container-*.tar")
	if err != nil {
		return nil, err
	}
	out := &Sparse{File: f, Room: o.Room}
	err = layers.Flatten(ctx, plain, out)
	if err = errors.Join(err, out.Finish(), f.Close(), s.unchanged()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	flat, err := openWorking(f.Name())
	if err != nil {
		return nil, err
	}
	o.Format = Tar
	d, err := o.treeOf(ctx, flat)
	if err != nil {
		return nil, errors.Join(err, flat.Close())
	}
	return d, s.Close()
}

// plain is a layer as a working file of its own, inflated.
func (o Options) plain(ctx context.Context, l layers.Layer) (*source, error) {
	f, err := os.CreateTemp(o.Temp, "layer-*")
	if err != nil {
		return nil, err
	}
	out := &Sparse{File: f, Room: o.Room}
	_, err = io.Copy(out, io.NewSectionReader(l, 0, l.Size()))
	if err = errors.Join(err, out.Finish(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	s, err := openWorking(f.Name())
	if err != nil {
		return nil, err
	}
	if s.Size() == 0 {
		return nil, errors.Join(fmt.Errorf("%w: it is empty", content.ErrInvalid), s.Close())
	}
	o.Note = func(string) {}
	return o.inflated(ctx, s)
}
