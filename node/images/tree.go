package images

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack/build"
)

// ImportTree publishes a directory or tar file under a name, as a tree, in the background. What can be known at once is
// refused at once.
func (im *Images) ImportTree(ctx context.Context, name string, req ImportRequest) (operations.View, error) {
	return im.importing(ctx, content.KindTree, name, req, im.plant)
}

func (im *Images) plant(ctx context.Context, op *operations.Operation, name string, req ImportRequest, old *version) error {
	note := func(text string) { op.Update(func(v *operations.View) { v.Note = text }) }
	work, said := workingIn(filepath.Join(im.cfg.Dir, TempDir)), []string{}
	req.Temp, req.Except, req.Room, req.Note = work.dir, im.cfg.Dir, work.room, note
	req.Warn = func(text string) { said = append(said, text) }
	ctx, end := context.WithCancel(ctx)
	defer end()
	files, err := convert.OpenFiles(ctx, req.Options)
	if err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	defer files.Close()
	body, err := im.build(ctx, op, build.Config{Scope: req.Scope, Kind: content.RootTree, ChunkSize: tree.ChunkSize, Lineage: old.lineage()}, func(b *build.Builder) error {
		w, err := tree.NewWriter(tree.Config{Codec: im.cfg.Codec, Add: func(ctx context.Context, index uint64, raw []byte) error {
			op.Update(func(v *operations.View) { v.Done += int64(len(raw)) })
			return b.Add(ctx, index, raw)
		}})
		if err == nil {
			_, err = files.Plant(ctx, w)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("import %q from %s: %w", name, req.Path, err)
	}
	note(strings.Join(said, "\n"))
	if body.Source = filepath.Base(req.Path); filepath.Dir(req.Path) == work.dir {
		body.Source = "standard input"
	}
	return im.replace(ctx, content.KindTree, name, body, old)
}
