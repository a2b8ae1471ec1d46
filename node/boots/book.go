package boots

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// rootsMax bounds the roots of which boots are kept, of some KiB each; those go first of which none was for longest.
	rootsMax = 512
	// pageMax bounds a file, in bytes: some boots of catalog.BootChunksMax chunks.
	pageMax   = 256 << 10
	pageMagic = "grange-boots/1"
	pageEnd   = ".boots"
)

// page is what is kept of a root, in a file of its own: dag-cbor.
type page struct {
	Magic string      `cbor:"magic"`
	Root  content.CID `cbor:"root"`
	// First are the chunks that the first boot here has read, in the order of first touch.
	First []uint64 `cbor:"first"`
	// At is when the last boot was, in Unix seconds, and Boots how many there were.
	At    int64 `cbor:"at"`
	Boots int   `cbor:"boots"`
	// Made is when the list was made that was brought in last, in Unix seconds: what follows is of that. Listed are the boots
	// that had it, of so many Chunks in all, of which Read were read.
	Made   int64 `cbor:"made"`
	Listed int   `cbor:"listed"`
	Chunks int   `cbor:"chunks"`
	Read   int   `cbor:"read"`
}

// book keeps what boots have read. Safe for concurrent use.
type book struct {
	dir   string
	codec *content.Codec

	mu    sync.Mutex // guards what follows
	pages map[content.CID]page
}

// openBook reads a folder, and makes it if need be. What is no file of it, or can't be read, goes: it is written anew. The
// error says why the book is empty.
func openBook(dir string, codec *content.Codec) (*book, error) {
	b := &book{dir: dir, codec: codec, pages: map[content.CID]page{}}
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return b, err
	}
	files, err := os.ReadDir(dir)
	for _, f := range files {
		if p, err := b.read(f.Name()); err == nil && len(b.pages) < rootsMax {
			b.pages[p.Root] = p
		} else {
			_ = os.Remove(filepath.Join(dir, f.Name())) // a start tries again
		}
	}
	return b, err
}

func (b *book) read(name string) (p page, err error) {
	if !strings.HasSuffix(name, pageEnd) {
		return p, content.ErrInvalid
	}
	path := filepath.Join(b.dir, name)
	if info, err := os.Stat(path); err != nil || info.Size() > pageMax {
		return p, cmp.Or(err, content.ErrCorrupt)
	}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = b.codec.Unmarshal(raw, &p)
	}
	if err == nil && (p.Magic != pageMagic || name != p.Root.String()+pageEnd || len(p.First) > catalog.BootChunksMax) {
		err = content.ErrCorrupt
	}
	return p, err
}

// boot is one that has ended.
type boot struct {
	at           int64
	trace        []uint64
	made         int64 // when the list was that it had
	listed, read int   // chunks of that, and those of them that were read
}

// note adds a boot of a root.
func (b *book) note(root content.CID, x boot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, known := b.pages[root]
	if !known {
		p = page{Magic: pageMagic, Root: root, First: x.trace}
	}
	p.At = x.at
	p.Boots++
	if x.listed > 0 && p.Made != x.made {
		p.Made, p.Listed, p.Chunks, p.Read = x.made, 0, 0, 0
	}
	if x.listed > 0 {
		p.Listed, p.Chunks, p.Read = p.Listed+1, p.Chunks+x.listed, p.Read+x.read
	}
	if !known && len(b.pages) >= rootsMax {
		if err := b.drop(); err != nil {
			return err
		}
	}
	raw, err := b.codec.Marshal(p)
	if err == nil {
		err = durable.WriteFile(filepath.Join(b.dir, root.String()+pageEnd), raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("boots of root %s: %w", root, err)
	}
	b.pages[root] = p
	return nil
}

// drop makes room for a root. Called with mu.
func (b *book) drop() error {
	var all []page
	for _, p := range b.pages {
		all = append(all, p)
	}
	oldest := slices.MinFunc(all, func(x, y page) int { return cmp.Compare(x.At, y.At) })
	if err := os.Remove(filepath.Join(b.dir, oldest.Root.String()+pageEnd)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(b.pages, oldest.Root)
	return nil
}

func (b *book) of(root content.CID) (page, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.pages[root]
	return p, ok
}

// worth reports whether the list that was made then is to be brought in for a root, for all that is known.
func (b *book) worth(root content.CID, made int64) bool {
	p, _ := b.of(root)
	return p.Made != made || p.Listed < judgedAfter || p.Read*100 >= p.Chunks*worthLeast
}
