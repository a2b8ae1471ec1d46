package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
)

// Export writes an image to a file on this host, in the background: beside the
// file first, so that a cut export leaves none.
func (im *Images) Export(name, file string) (OperationView, error) {
	if err := content.CheckName(name); err != nil {
		return OperationView{}, err
	}
	if !filepath.IsAbs(file) {
		return OperationView{}, fmt.Errorf("export to %q: %w: want an absolute path", file, content.ErrInvalid)
	}
	return im.n.Operations.Start("export", name, func(ctx context.Context, op *Operation) error {
		k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
		if err != nil {
			return err
		}
		tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".export-*")
		if err != nil {
			return err
		}
		err = im.exportTo(ctx, *k.head, tmp, func(n int64) { op.Update(func(v *OperationView) { v.Done = n }) })
		err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
		if err == nil {
			err = os.Rename(tmp.Name(), file)
		}
		if err != nil {
			return errors.Join(err, os.Remove(tmp.Name()))
		}
		return nil
	})
}

func (im *Images) exportTo(ctx context.Context, head pack.Head, f *os.File, progress func(int64)) error {
	m, err := im.open(fetch.Root{Head: head})
	if err != nil {
		return err
	}
	return convert.Export(ctx, whole{m}, f, progress)
}

// whole reads whole chunks of an image.
type whole struct{ *fetch.Image }

// ReadChunk implements convert.Source.
func (w whole) ReadChunk(ctx context.Context, index uint64, p []byte) error {
	return w.Image.ReadChunk(ctx, index, 0, p)
}

// Verify reads every chunk of an image at the origin, in the background, and
// fails with the first that is not what its name says.
func (im *Images) Verify(name string) (OperationView, error) {
	if err := content.CheckName(name); err != nil {
		return OperationView{}, err
	}
	return im.n.Operations.Start("verify", name, func(ctx context.Context, op *Operation) error {
		store := im.n.origin.readable()
		if store == nil {
			return fmt.Errorf("verify %q: %w: the origin does not answer", name, content.ErrUnavailable)
		}
		k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
		if err != nil {
			return err
		}
		r := pack.NewReader(store)
		m, err := r.ReadManifest(ctx, *k.head)
		if err != nil {
			return fmt.Errorf("verify %q: %w", name, err)
		}
		var done atomic.Int64
		// A pack holds other images' chunks too: progress is told in equal parts of this one.
		part := int64(m.Stored) / int64(max(len(m.Packs), 1))
		op.Update(func(v *OperationView) { v.Total = int64(m.Stored) })
		for _, id := range m.Packs {
			if err := r.VerifyPack(ctx, id); err != nil {
				return fmt.Errorf("verify %q: %w", name, err)
			}
			op.Update(func(v *OperationView) {
				n := done.Add(1)
				v.Done, v.Note = n*part, fmt.Sprintf("%d of %d packs", n, len(m.Packs))
			})
		}
		op.Update(func(v *OperationView) { v.Done, v.Bytes["verified"] = v.Total, v.Total })
		return nil
	})
}
