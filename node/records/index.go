package records

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/btree"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// pieceMax bounds one piece of the file: three records, as many statements, and
	// what is known of them.
	pieceMax = 8 * content.RecordSizeMax
	// spareMax is how many bytes of pieces that count no more the file may have, beside
	// as many as count: then it is written anew.
	spareMax = 16 << 20
	// fanout of the tree of keys: wide nodes waste little memory.
	fanout = 64
	// headSize is what stands before each piece.
	headSize = 8

	indexMagic = "grange-names/1\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// index keeps what is known of all names in one file, and in memory only where each
// piece of it lies, in the order of keys: some 300 bytes a name. Safe for concurrent use.
//
//	offset  bytes
//	0       15     magic "grange-names/1\n"
//	then, for each piece, the last of a name counts:
//	0       4      CRC-32C of all that follows in the piece, little endian
//	4       4      length of the body, little endian
//	8       ...    body: the canonical CBOR of a piece
//
// A piece that is torn or damaged is passed over, and the end of the file that makes
// none is cut off: the origin has it all, and is asked again.
type index struct {
	path  string
	codec *content.Codec
	flush func(*os.File) error // Sync

	mu   sync.RWMutex // guards what follows
	f    *os.File
	end  int64 // where the next piece goes
	live int64 // the bytes of those that count
	keys *btree.BTreeG[place]
}

// place is where the piece of a name lies. Each link is a key of its own, with the name
// behind it.
type place struct {
	key   string
	links []string
	at    int64
	size  int
}

// piece is what the file has of a name: nothing once the name is forgotten. Of content
// that it stands for it says the root of the map, for who looks whether that is here.
type piece struct {
	ID    string        `cbor:"id"`
	Links [][]byte      `cbor:"links"`
	Maps  []content.CID `cbor:"maps"`
	Body  []byte        `cbor:"body"`
}

// openIndex opens the file, which it makes if need be. seen is told of each piece.
func openIndex(path string, codec *content.Codec, seen func(piece)) (x *index, damaged int, err error) {
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, 0, fmt.Errorf("records: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("records: %w", err)
	}
	x = &index{path: path, codec: codec, flush: (*os.File).Sync, f: f, keys: btree.NewG(fanout, func(a, b place) bool { return a.key < b.key })}
	if damaged, err = x.load(seen); err == nil && damaged > 0 {
		err = x.rewrite()
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("records: %w", err), x.close())
	}
	return x, damaged, nil
}

// load reads the file from its beginning, and cuts off what is no piece.
func (x *index) load(seen func(piece)) (damaged int, err error) {
	r := bufio.NewReaderSize(x.f, 1<<20)
	magic := make([]byte, len(indexMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != indexMagic {
		if len(magic) > 0 && err == nil {
			damaged = 1
		}
		if err := x.f.Truncate(0); err != nil {
			return 0, err
		}
		_, err = x.f.WriteAt([]byte(indexMagic), 0)
		x.end = int64(len(indexMagic))
		return damaged, err
	}
	x.end = int64(len(indexMagic))
	b := make([]byte, headSize+pieceMax)
	for {
		if _, err := io.ReadFull(r, b[:headSize]); err != nil {
			break
		}
		size := int(binary.LittleEndian.Uint32(b[4:]))
		if size == 0 || size > pieceMax {
			break
		}
		whole := b[:headSize+size]
		if _, err := io.ReadFull(r, whole[headSize:]); err != nil {
			break
		}
		p, err := x.decode(whole)
		if err != nil {
			damaged++
		} else {
			x.enter(p, x.end, len(whole))
			seen(p)
		}
		x.end += int64(len(whole))
	}
	return damaged, x.f.Truncate(x.end)
}

func (x *index) decode(whole []byte) (p piece, err error) {
	if sum := crc32.Checksum(whole[4:], castagnoli); sum != binary.LittleEndian.Uint32(whole) {
		return p, fmt.Errorf("%w: the checksum does not match", content.ErrCorrupt)
	}
	err = x.codec.Unmarshal(whole[headSize:], &p)
	return p, err
}

func (x *index) enter(p piece, at int64, size int) {
	old, ok := x.keys.Get(place{key: p.ID})
	if ok {
		x.live -= int64(old.size)
		for _, link := range old.links {
			x.keys.Delete(place{key: link})
		}
		x.keys.Delete(old)
	}
	if len(p.Body) == 0 {
		return
	}
	n := place{key: p.ID, at: at, size: size}
	for _, link := range p.Links {
		l := string(link) + "\x00" + p.ID
		x.keys.ReplaceOrInsert(place{key: l})
		n.links = append(n.links, l)
	}
	x.keys.ReplaceOrInsert(n)
	x.live += int64(size)
}

// put makes a piece the one of its name; one without a body forgets it. It is on disk
// for good once sync returns.
func (x *index) put(p piece) error {
	body, err := x.codec.Marshal(p)
	if err != nil {
		return err
	}
	if len(body) > pieceMax {
		return fmt.Errorf("%w: %d bytes", content.ErrInvalid, len(body))
	}
	whole := append(make([]byte, headSize, headSize+len(body)), body...)
	binary.LittleEndian.PutUint32(whole[4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(whole, crc32.Checksum(whole[4:], castagnoli))
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, err := x.f.WriteAt(whole, x.end); err != nil {
		x.enter(p, 0, 0) // it is listed; what was written is behind the end, and is written over
		return err
	}
	x.enter(p, x.end, len(whole))
	x.end += int64(len(whole))
	if x.end > 2*x.live+spareMax {
		return x.rewrite()
	}
	return nil
}

// get returns the body of a name's piece, nil when there is none.
func (x *index) get(id string) ([]byte, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n, ok := x.keys.Get(place{key: id})
	if !ok {
		return nil, nil
	}
	whole := make([]byte, n.size)
	if _, err := x.f.ReadAt(whole, n.at); err != nil {
		return nil, err
	}
	p, err := x.decode(whole)
	return p.Body, err
}

// after returns up to limit keys that begin with prefix and come behind key, in their
// order, without the prefix.
func (x *index) after(prefix, key string, limit int) (out []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.keys.AscendGreaterOrEqual(place{key: prefix + key}, func(n place) bool {
		rest, ok := strings.CutPrefix(n.key, prefix)
		if ok && (rest > key || key == "") {
			out = append(out, rest)
		}
		return ok && len(out) < limit
	})
	return out
}

// rewrite leaves away what counts no more. Called with mu.
func (x *index) rewrite() error {
	next := x.path + ".next"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	y := &index{f: f, keys: x.keys.Clone(), end: int64(len(indexMagic))}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = w.WriteString(indexMagic)
	x.keys.Ascend(func(n place) bool {
		if n.size > 0 && err == nil {
			if _, err = io.Copy(w, io.NewSectionReader(x.f, n.at, int64(n.size))); err == nil {
				n.at, y.end = y.end, y.end+int64(n.size)
				y.keys.ReplaceOrInsert(n)
			}
		}
		return err == nil
	})
	if err = errors.Join(err, w.Flush()); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(next, x.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(next))
	}
	old := x.f
	x.f, x.end, x.keys = y.f, y.end, y.keys
	return errors.Join(old.Close(), durable.SyncDir(filepath.Dir(x.path)))
}

// sync has all that was put on disk for good. Nobody waits for that who puts or gets.
func (x *index) sync() error {
	x.mu.RLock()
	f := x.f
	x.mu.RUnlock()
	err := x.flush(f)
	if errors.Is(err, os.ErrClosed) {
		x.mu.RLock()
		defer x.mu.RUnlock()
		if f != x.f { // it was written anew meanwhile, and synced
			return nil
		}
	}
	return err
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.Close()
}

// linked returns the names behind a link, up to limit.
func (x *index) linked(link string, limit int) []string { return x.after(link+"\x00", "", limit) }

// links returns those of a name.
func (x *index) links(id string) (out []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n, _ := x.keys.Get(place{key: id})
	for _, l := range n.links {
		out = append(out, strings.TrimSuffix(l, "\x00"+id))
	}
	return out
}

// names returns up to limit names that come behind id in the order of all.
func (x *index) names(id string, limit int) []string { return x.after("", max(id, "\x03"), limit) }

// links are what of a name others look for: the roots that it stands for, and the image
// that a tag was set on. They begin as no name does.
func (e entry) links() (out [][]byte) {
	for _, r := range e.stand() {
		out = append(out, []byte(r.link()))
	}
	if !e.isEmpty() && e.answer().Target != "" {
		out = append(out, []byte(targetLink(e.answer().Target)))
	}
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

const (
	rootLinks   = "\x01"
	targetLinks = "\x02"
)

func (r rootKey) link() string { return rootLinks + string(r.root[:]) + r.scope.String() }

func linkedRoot(link string) (r rootKey, ok bool) {
	if !strings.HasPrefix(link, rootLinks) || len(link) < 1+len(r.root) {
		return r, false
	}
	copy(r.root[:], link[1:])
	var err error
	r.scope, err = content.ParseScope(link[1+len(r.root):])
	return r, err == nil
}

func targetLink(image string) string { return targetLinks + image }
