package pack

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

const (
	// spanMax bounds what one ranged GET of a Reader brings in, in bytes: the four runs that a line of 1 Gbit/s
	// carries in the time of a request to a store that is far away, and the frame that starts at their end.
	spanMax = 4*content.RunSize + FrameSizeMax

	// directoryGuess is how much of a pack's end is read at first: the footer and
	// the directory of a pack of ordinary chunks.
	directoryGuess = 64 << 10
)

// Reader reads packs from one bucket. Everything it returns was checked against its CID. Bytes that do not
// match or do not decode are content.ErrCorrupt, with the pack and offset; a pack that is gone is
// content.ErrNotFound. Safe for concurrent use.
type Reader struct {
	bucket bucket.Bucket
	codec  *content.Codec
	dec    *zstd.Decoder
	pool   scratch.Pool
	moves  moves
}

// NewReader returns a Reader of b, which may be read-only.
func NewReader(b bucket.Bucket) *Reader {
	return &Reader{bucket: b, codec: content.NewCodec(), dec: newDecoder()}
}

// ReadFrames is Stream that waits for all. The result has one element a frame, in the
// order asked; of those that could not be had it is the zero Verified.
func (r *Reader) ReadFrames(ctx context.Context, frames []Extent) ([]content.Verified, error) {
	if len(frames) == 0 {
		return nil, nil
	}
	out := make([]content.Verified, len(frames))
	err := r.Stream(ctx, frames, func(i int, v content.Verified) { out[i] = v })
	return out, err
}

// Stream reads frames of one pack with one ranged GET that covers them all, gaps included; together they span
// at most four runs and a frame. Each is handed to take as soon as it has come, with its place among those asked
// for: over a slow line the first is of use long before the last. It is the taker's for good, or until it
// calls Free. Where some frames are bad the others are handed on, and the error is ErrCorrupt.
func (r *Reader) Stream(ctx context.Context, frames []Extent, take func(i int, v content.Verified)) (err error) {
	if len(frames) == 0 {
		return nil
	}
	first, end, order := frames[0], frames[0].End(), make([]int, len(frames))
	for i, e := range frames {
		if err := e.Check(); err != nil {
			return fmt.Errorf("read %s: %w", e.Location, err)
		}
		if e.Pack != first.Pack || e.Raw > FrameSizeMax {
			return fmt.Errorf("read %s: %w: frame of %d raw bytes beside pack %s", e.Location, content.ErrInvalid, e.Raw, first.Pack)
		}
		first.Offset, end, order[i] = min(first.Offset, e.Offset), max(end, e.End()), i
	}
	if end-first.Offset > spanMax {
		return fmt.Errorf("read pack %s: %w: frames from %d to %d, at most %d bytes are read at once", first.Pack, content.ErrInvalid, first.Offset, end, spanMax)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(frames[a].Offset, frames[b].Offset) })
	at := bucket.Range{Offset: int64(first.Offset), Length: int64(end - first.Offset)}
	obj, err := r.open(ctx, first.Pack, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, obj.Body.Close()) }()
	w, bad := window{&r.pool, r.pool.Get(int(frames[order[0]].Length)), first.Offset, first.Offset}, 0
	defer func() { r.pool.Put(w.b) }() // the frames share no memory with it
	for _, i := range order {
		e := frames[i]
		frame, readErr := w.frame(obj.Body, e)
		if readErr != nil {
			return cut(first.Pack, at, int(w.to-first.Offset), readErr)
		}
		raw := r.pool.Get(int(e.Raw))
		v, frameErr := decodeFrame(r.dec, e, frame, *raw)
		if frameErr == nil {
			take(i, v)
			continue
		}
		r.pool.Put(raw)
		if bad++; err == nil {
			err = fmt.Errorf("read %s: %w", e.Location, frameErr)
		}
	}
	if bad > 1 {
		err = fmt.Errorf("%w (first of %d bad frames of %d)", err, bad, len(frames))
	}
	return err
}

// window is what frames are cut from, by rising offsets, as a body is read: mostly one
// frame, as they seldom overlap.
type window struct {
	pool   *scratch.Pool
	b      *[]byte // what lies from at on
	at, to uint32  // to is where the body stands
}

func (w *window) frame(body io.Reader, e Extent) ([]byte, error) {
	if e.Offset >= w.to { // nothing of what was read is asked for any more
		w.at = w.to
	}
	if n := int(e.End() - w.at); n > len(*w.b) {
		b := w.pool.Get(n)
		copy(*b, (*w.b)[:w.to-w.at])
		w.pool.Put(w.b)
		w.b = b
	}
	n, err := io.ReadFull(body, (*w.b)[w.to-w.at:max(e.End(), w.to)-w.at])
	w.to += uint32(n)
	return (*w.b)[e.Offset-w.at : e.End()-w.at], err
}

// Free takes back what Stream has given, once nobody looks at its bytes any more.
func (r *Reader) Free(v content.Verified) { b := v.Bytes(); r.pool.Put(&b) }

// errShort: the store has less than the hint says.
var errShort = fmt.Errorf("%w: it ends before", content.ErrCorrupt)

func open(ctx context.Context, from bucket.Bucket, id ID, at bucket.Range) (*bucket.Object, error) {
	obj, err := from.Get(ctx, id.Key(), at)
	if errors.Is(err, content.ErrInvalid) {
		err = fmt.Errorf("%w: %w", errShort, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read pack %s at %d+%d: %w", id, at.Offset, at.Length, err)
	}
	return obj, nil
}

// cut says of a range why only n bytes of it came.
func cut(id ID, at bucket.Range, n int, err error) error {
	switch {
	case errors.Is(err, content.ErrCorrupt):
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		err = fmt.Errorf("%w: only %d bytes are there", content.ErrCorrupt, n)
	default:
		err = fmt.Errorf("%w: %w", content.ErrUnavailable, err)
	}
	return fmt.Errorf("read pack %s at %d+%d: %w", id, at.Offset, at.Length, err)
}

// readRange reads a range of a pack, all of it; of a suffix, as much as there is.
func readRange(ctx context.Context, from bucket.Bucket, id ID, at bucket.Range, limit int64) ([]byte, bucket.Info, error) {
	obj, err := open(ctx, from, id, at)
	if err != nil {
		return nil, bucket.Info{}, err
	}
	b, err := drain(obj, id, at, limit)
	return b, obj.Info, err
}

// drain reads what was opened, and closes it.
func drain(obj *bucket.Object, id ID, at bucket.Range, limit int64) (b []byte, err error) {
	defer func() { err = errors.Join(err, obj.Body.Close()) }()
	if at.Length > 0 {
		b = make([]byte, at.Length)
		n, readErr := io.ReadFull(obj.Body, b)
		b, err = b[:n], readErr
	} else if b, err = io.ReadAll(io.LimitReader(obj.Body, limit+1)); err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", content.ErrCorrupt, limit)
	}
	if err != nil {
		return nil, cut(id, at, len(b), err)
	}
	return b, nil
}

// twice reads once more what came damaged: a bit may have flipped on the way.
func twice[T any](read func() (T, error)) (T, error) {
	out, err := read()
	if errors.Is(err, content.ErrCorrupt) {
		return read()
	}
	return out, err
}

// MapNode is a block map node with its locator page.
type MapNode struct {
	Node content.Node
	Page *Page
}

// ReadNode reads a map node and its page with one ranged GET, or where they went. The
// pair comes from Head.Top or from the parent's Page.ChildPair, the scope is the root's.
func (r *Reader) ReadNode(ctx context.Context, scope content.Scope, level int, p Pair) (MapNode, error) {
	return ReadNode(ctx, r, scope, level, p)
}

// ReadNode is Reader.ReadNode from any source.
func ReadNode(ctx context.Context, from Source, scope content.Scope, level int, p Pair) (MapNode, error) {
	frames, err := ReadMoved(ctx, from, []Extent{p.Node, p.Page})
	if err != nil {
		return MapNode{}, err
	}
	n, err := DecodeMapNode(content.NewCodec(), scope, level, frames[0], frames[1])
	if err != nil {
		return MapNode{}, fmt.Errorf("read %s: %w", p.Node.Location, err)
	}
	return n, nil
}

// DecodeMapNode joins the bytes of a map node and its page, wherever they came
// from. What cannot be such a pair is ErrCorrupt.
func DecodeMapNode(c *content.Codec, scope content.Scope, level int, node, page content.Verified) (MapNode, error) {
	n, err := content.DecodeNode(c, level, node.Bytes())
	if err != nil {
		return MapNode{}, err
	}
	p, err := DecodePage(scope, level, page.Bytes())
	if err != nil {
		return MapNode{}, err
	}
	for i := range max(len(n.Entries), p.Len()) {
		if _, located := p.Child(i); located == n.Entry(i).IsHole() {
			return MapNode{}, fmt.Errorf("locator page, entry %d: %w: not the page of map node %s", i, content.ErrCorrupt, node.CID())
		}
	}
	return MapNode{n, p}, nil
}

// ReadManifest reads the manifest that a head names, or where it went.
func (r *Reader) ReadManifest(ctx context.Context, h Head) (Manifest, error) {
	got, err := ReadMoved(ctx, large{r}, []Extent{h.Manifest})
	var m Manifest
	if err == nil {
		m, err = DecodeManifest(r.codec, got[0].Bytes())
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest in %s: %w", h.Manifest.Location, err)
	}
	return m, nil
}

// large reads frames that may be as large as a manifest, one at a time.
type large struct{ *Reader }

func (r large) Stream(ctx context.Context, frames []Extent, take func(i int, v content.Verified)) error {
	e := frames[0]
	if err := e.Check(); err != nil {
		return err
	}
	if e.Raw > ManifestSizeMax {
		return fmt.Errorf("%w: %d raw bytes", content.ErrCorrupt, e.Raw)
	}
	at := bucket.Range{Offset: int64(e.Offset), Length: int64(e.Length)}
	obj, err := r.open(ctx, e.Pack, at)
	if err != nil {
		return err
	}
	b, err := drain(obj, e.Pack, at, ManifestSizeMax)
	if err != nil {
		return err
	}
	v, err := decodeFrame(r.dec, e, b, make([]byte, e.Raw))
	if err == nil {
		take(0, v)
	}
	return err
}

// ReadDirectory reads the footer and directory of a pack, for most packs with one ranged GET.
func (r *Reader) ReadDirectory(ctx context.Context, id ID) (*Directory, error) {
	return twice(func() (*Directory, error) {
		tail, info, err := readRange(ctx, r.bucket, id, bucket.Range{Offset: -directoryGuess}, directoryGuess)
		if err != nil {
			return nil, err
		}
		d, err := r.directory(ctx, id, tail, info.Size)
		if err != nil {
			return nil, fmt.Errorf("read pack %s: %w", id, err)
		}
		return d, nil
	})
}

// directory decodes the end of a pack of size bytes, and reads the rest of its
// directory when tail does not hold it all.
func (r *Reader) directory(ctx context.Context, id ID, tail []byte, size int64) (*Directory, error) {
	f, err := decodeFooter(tail[max(0, len(tail)-footerSize):])
	if err != nil {
		return nil, err
	}
	if int64(f.length) != size {
		return nil, fmt.Errorf("footer: %w: pack of %d bytes, want %d", content.ErrCorrupt, size, f.length)
	}
	entries, want := int(f.entries)*EntrySize, int(f.entries)*EntrySize+int(f.signature)
	var b []byte
	if have := len(tail) - footerSize; have >= want {
		b = tail[have-want : have]
	} else if b, _, err = readRange(ctx, r.bucket, id, bucket.Range{Offset: int64(f.directory), Length: int64(want)}, SizeMax); err != nil {
		return nil, err
	}
	b, signature := b[:entries], b[entries:]
	if _, err := content.Verify(f.digest, b); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	list, err := decodeDirectory(id, b, f.directory)
	if err != nil {
		return nil, err
	}
	if f.moved != "" && !f.moved.Scope().Covers(id.Scope()) {
		return nil, fmt.Errorf("footer: %w: moved to %s, out of its scope", content.ErrForbidden, f.moved)
	}
	return &Directory{id, f.moved, list, bytes.Clone(signature)}, nil
}

// ReadFooter reads the last bytes of a pack: what says which pack it is.
func ReadFooter(ctx context.Context, from bucket.Bucket, id ID) (Footer, error) {
	return twice(func() (Footer, error) {
		b, _, err := readRange(ctx, from, id, bucket.Range{Offset: -footerSize}, footerSize)
		if err != nil {
			return Footer{}, err
		}
		return decodeFooter(b)
	})
}

// MissingPacks returns the keys of those packs of m that are not in the bucket, or not the same by what the caller knows
// of them; same may be nil. It is for who has built on what an index knew; that all stays is seen to by package garbage.
// It costs a list for each hour that the packs are from.
func MissingPacks(ctx context.Context, b bucket.Bucket, m Manifest, same func(ID, bucket.Info) bool) (keys []string, err error) {
	there, err := Infos(ctx, b, m.Keys())
	if err != nil {
		return nil, fmt.Errorf("check packs of root %s: %w", m.Root, err)
	}
	for _, p := range m.Packs {
		info, ok := there[p.ID.Key()]
		if !ok || same != nil && !same(p.ID, info) {
			keys = append(keys, p.ID.Key())
		}
	}
	return keys, nil
}

// Infos returns what lists say of the objects under some rising keys; nothing of those under which none is. It costs a list
// for each hour that packs are from, and one for each journal.
func Infos(ctx context.Context, of bucket.Bucket, keys []string) (map[string]bucket.Info, error) {
	out := make(map[string]bucket.Info, len(keys))
	for len(keys) > 0 {
		prefix := keys[0][:strings.LastIndexByte(keys[0], '/')+1]
		if id, err := ParseKey(keys[0]); err == nil {
			prefix = id.hourPrefix()
		}
		n := 0
		for n < len(keys) && strings.HasPrefix(keys[n], prefix) {
			n++
		}
		for info, err := range of.List(ctx, prefix, "") {
			if err != nil {
				return nil, err
			}
			if _, asked := slices.BinarySearch(keys[:n], info.Key); asked {
				out[info.Key] = info
			}
		}
		keys = keys[n:]
	}
	return out, nil
}
