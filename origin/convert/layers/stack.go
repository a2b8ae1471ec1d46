package layers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// entriesMax bounds the entries of all layers, of which each takes some 200 bytes of memory; pathMax the bytes of a
	// path, as Linux does; hopsMax the symbolic links that lead to a file.
	// foldersMax is how deep folders are, which links may make deeper than a path is long.
	entriesMax, pathMax, hopsMax, foldersMax = 2 << 20, 4096, 40, 1024
	// copySize is read at once.
	copySize = 256 << 10
	// block is what tar files are made of.
	block = 512
	// whiteout begins the name of what hides a file of lower layers, and opaque is that of what hides all in its folder.
	// Other names that begin with reserved are some storage driver's own.
	whiteout, reserved, opaque = ".wh.", ".wh..wh.", ".wh..wh..opq"
)

// file is what one or more names stand for: where its header lies.
type file struct {
	layer  int
	at     int64
	kind   byte
	target string // of a symbolic link
	name   string // under which it was written
}

// node is a name. A folder that no layer has an entry for has no file.
type node struct {
	file *file
	kids map[string]*node
	made int // the layer that has it last
}

func (n *node) isFolder() bool { return n.file == nil || n.file.kind == tar.TypeDir }

// stack is layers over each other.
type stack struct {
	layers  []*io.SectionReader
	root    *node
	entries int
}

// lay puts a layer over those below.
func (t *stack) lay(ctx context.Context, layer int) error {
	in := t.layers[layer]
	for at := int64(0); ; {
		if _, err := in.Seek(at, io.SeekStart); err != nil {
			return err
		}
		r := tar.NewReader(in)
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%w: it is cut short or damaged: %w", content.ErrInvalid, err)
		}
		if t.entries++; t.entries > entriesMax {
			return fmt.Errorf("%w: more than %d entries", content.ErrInvalid, entriesMax)
		}
		if err := t.put(layer, at, h); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		// What a file holds is passed over; of one stored without its holes it is read.
		end, _ := in.Seek(0, io.SeekCurrent)
		if h.Typeflag == tar.TypeReg && !isSparse(h) {
			end += h.Size
		} else {
			if _, err := io.Copy(io.Discard, r); err != nil {
				return fmt.Errorf("%w: %.200q is cut short or damaged: %w", content.ErrInvalid, h.Name, err)
			}
			end, _ = in.Seek(0, io.SeekCurrent)
		}
		if end > in.Size() {
			return fmt.Errorf("%w: %.200q is cut short", content.ErrInvalid, h.Name)
		}
		at = (end + block - 1) / block * block
	}
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// put takes an entry of a layer.
func (t *stack) put(layer int, at int64, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if len(h.Name) > pathMax || len(h.Linkname) > pathMax {
		return fmt.Errorf("%w: a path of more than %d bytes", content.ErrInvalid, pathMax)
	}
	dir, name := path.Split(path.Clean("/" + h.Name))
	f := &file{layer: layer, at: at, kind: h.Typeflag}
	switch {
	case name == "":
		t.root.file = f
		return nil
	case name == opaque:
		if n, err := t.find(dir, -1); err != nil || n == nil {
			return err
		} else {
			n.hide(layer)
		}
		return nil
	case strings.HasPrefix(name, reserved):
		return nil
	case strings.HasPrefix(name, whiteout):
		n, err := t.find(dir, -1)
		if err == nil && n != nil {
			n.drop(strings.TrimPrefix(name, whiteout), layer)
		}
		return err
	}
	parent, err := t.find(dir, layer)
	if err != nil {
		return err
	}
	next := &node{file: f, made: layer}
	switch h.Typeflag {
	case tar.TypeSymlink:
		f.target = h.Linkname
	case tar.TypeLink:
		dir, name := path.Split(path.Clean("/" + h.Linkname))
		from, err := t.find(dir, -1)
		if err != nil {
			return err
		}
		if from == nil || from.kids[name] == nil || from.kids[name].isFolder() {
			return fmt.Errorf("%w: it is another name of %.200q, which is no file of it or a lower layer", content.ErrInvalid, h.Linkname)
		}
		next.file = from.kids[name].file
	case tar.TypeDir:
		if old := parent.kids[name]; old != nil && old.isFolder() {
			next.kids = old.kids
		}
	}
	parent.set(name, next)
	return nil
}

func (n *node) set(name string, kid *node) {
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	n.kids[name] = kid
}

// hide removes what lower layers have in a folder.
func (n *node) hide(layer int) {
	for name := range n.kids {
		n.drop(name, layer)
	}
}

// drop removes what lower layers have under a name.
func (n *node) drop(name string, layer int) {
	kid := n.kids[name]
	if kid == nil {
		return
	}
	if kid.isFolder() {
		kid.hide(layer)
	}
	if kid.made < layer && len(kid.kids) == 0 {
		delete(n.kids, name)
	}
}

// find returns the folder at a path, through symbolic links, none of which leads out. One that is not there is nil, or made
// where a layer is given.
func (t *stack) find(dir string, layer int) (*node, error) {
	todo := strings.Split(dir, "/")
	way := []*node{t.root}
	for hops := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		here := way[len(way)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			way = way[:max(1, len(way)-1)]
			continue
		}
		kid := here.kids[name]
		if kid != nil && !kid.isFolder() && kid.file.kind == tar.TypeSymlink {
			if hops++; hops > hopsMax {
				return nil, fmt.Errorf("%w: more than %d symbolic links lead there", content.ErrInvalid, hopsMax)
			}
			if strings.HasPrefix(kid.file.target, "/") {
				way = way[:1]
			}
			todo = append(strings.Split(kid.file.target, "/"), todo...)
			continue
		}
		if kid == nil || !kid.isFolder() {
			if layer < 0 {
				return nil, nil
			}
			if t.entries++; t.entries > entriesMax {
				return nil, fmt.Errorf("%w: more than %d entries", content.ErrInvalid, entriesMax)
			}
			kid = &node{made: layer}
			here.set(name, kid)
		}
		if way = append(way, kid); len(way) > foldersMax {
			return nil, fmt.Errorf("%w: more than %d folders in each other", content.ErrInvalid, foldersMax)
		}
	}
	return way[len(way)-1], nil
}

// write writes what is under a folder, names in their order, each file's bytes under the first of its names.
func (t *stack) write(ctx context.Context, w *tar.Writer, n *node, at string, buf []byte) error {
	if n.file != nil {
		if err := t.writeFile(w, n.file, at, buf); err != nil {
			return fmt.Errorf("%.200q: %w", at, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	for _, name := range n.sorted() {
		if err := t.write(ctx, w, n.kids[name], path.Join(at, name), buf); err != nil {
			return err
		}
	}
	return nil
}

func (t *stack) writeFile(w *tar.Writer, f *file, at string, buf []byte) error {
	in := t.layers[f.layer]
	if _, err := in.Seek(f.at, io.SeekStart); err != nil {
		return err
	}
	r := tar.NewReader(in)
	h, err := r.Next()
	if err != nil {
		return err
	}
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: at, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
		Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: h.PAXRecords, Format: tar.FormatPAX,
	}
	switch {
	case at == "":
		out.Name = "."
	case f.name != "":
		out.Typeflag, out.Linkname, out.Size, out.PAXRecords = tar.TypeLink, f.name, 0, nil
	case h.Typeflag == tar.TypeGNUSparse, h.Typeflag == tar.TypeCont:
		out.Typeflag = tar.TypeReg
	}
	if out.Typeflag == tar.TypeDir {
		out.Name += "/"
	}
	linked := f.name != ""
	f.name = at
	if err := w.WriteHeader(out); err != nil || linked || out.Size == 0 {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	return err
}
