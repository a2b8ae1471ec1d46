package garbage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage/repack"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// SureFor is how long what was put is taken to be there, unseen, by whoever has put it and commits a record of it: by the
	// store's clock, and far less than GraceMin.
	SureFor = time.Minute
	// GraceMin is the least time between a tombstone and the end of what it is of; GraceDefault is a day: what reads on
	// without a lease has that long to end.
	GraceMin     = time.Hour
	GraceDefault = 24 * time.Hour

	batchSuffix = ".batch"
	batchMagic  = "grange-garbage/1"
	// batchMax bounds the tombstones of a batch: some 100 KiB, and a committer that takes one out writes them all.
	batchMax = 1000
	// batchSizeMax bounds an encoded batch, in bytes: as many of the longest keys.
	batchSizeMax = 1 << 20
	// secureTries bounds how often a batch is changed that others change too: each try is lost to one who succeeded.
	secureTries = 20
)

// Batch is some tombstones. The zero Batch has none.
//
// Encoded as a dag-cbor map: magic "grange-garbage/1", since (milliseconds since 1970, by the store's clock), epoch (of
// the collection that wrote it first), condemned, and the keys to delete and to repack, each rising and once.
type Batch struct {
	// Since is the time from which the grace counts.
	Since int64  `cbor:"since"`
	Epoch uint64 `cbor:"epoch"`
	// Condemned says that all of these go, and that none can be taken out any more.
	Condemned bool     `cbor:"condemned"`
	Delete    []string `cbor:"delete"`
	// Repack are packs of which some frames go: those that live are in others by then.
	Repack []string `cbor:"repack"`

	key, etag string // where it was read
}

type batchWire struct {
	Magic string `cbor:"magic"`
	Batch
}

// keys yields all.
func (b Batch) keys() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, key := range b.Delete {
			if !yield(key) {
				return
			}
		}
		for _, key := range b.Repack {
			if !yield(key) {
				return
			}
		}
	}
}

func (b Batch) size() int { return len(b.Delete) + len(b.Repack) }

// without returns b less some of its keys.
func (b Batch) without(gone func(key string) bool) Batch {
	b.Delete = slices.DeleteFunc(slices.Clone(b.Delete), gone)
	b.Repack = slices.DeleteFunc(slices.Clone(b.Repack), gone)
	return b
}

func (b Batch) encode(c *content.Codec) ([]byte, error) {
	b.Delete, b.Repack = append([]string{}, b.Delete...), append([]string{}, b.Repack...)
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("tombstones: %w: %w", content.ErrInvalid, err)
	}
	return c.Marshal(batchWire{batchMagic, b})
}

func (b Batch) check() error {
	if b.size() > batchMax || b.Since < 0 {
		return fmt.Errorf("%d keys since %d", b.size(), b.Since)
	}
	for _, keys := range [][]string{b.Delete, b.Repack} {
		for i, key := range keys {
			if i > 0 && keys[i-1] >= key {
				return errors.New("keys out of order")
			}
			if err := bucket.CheckKey(key); err != nil {
				return err
			}
			if !mayGo(key) {
				return fmt.Errorf("%s is nothing that is ever deleted", key)
			}
		}
	}
	return nil
}

// mayGo reports whether a key is one of those that tombstones are for.
func mayGo(key string) bool {
	return strings.HasPrefix(key, string(content.KeyPacks)) || strings.HasPrefix(key, string(content.KeyJournals))
}

// decodeBatch reads an encoded batch; anything but the one encoding of a valid one is ErrCorrupt, one of a later version
// ErrUnknown.
func decodeBatch(c *content.Codec, b []byte) (Batch, error) {
	var w batchWire
	err := c.Unmarshal(b, &w)
	if err == nil && w.Magic != batchMagic {
		err = fmt.Errorf("%w: magic %.30q", content.ErrUnknown, w.Magic)
	}
	if err == nil {
		var again []byte
		if again, err = w.Batch.encode(c); err == nil && !slices.Equal(again, b) {
			err = fmt.Errorf("%w: not the canonical encoding", content.ErrUnknown)
		}
	}
	if err != nil {
		return Batch{}, fmt.Errorf("tombstones: %w: %w", content.ErrCorrupt, err)
	}
	return w.Batch, nil
}

// readBatch reads the batch of a key. One that was deleted meanwhile is ErrNotFound.
func readBatch(ctx context.Context, from bucket.Bucket, key string) (Batch, error) {
	codec := content.NewCodec()
	b, err := bucket.ReadChecked(ctx, from, key, batchSizeMax, func(raw []byte, info bucket.Info) (Batch, error) {
		b, err := decodeBatch(codec, raw)
		b.key, b.etag = key, info.ETag
		return b, err
	})
	if errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrUnknown) {
		err = fmt.Errorf("%w; what it says is lost: delete that object when no collection of garbage is under way, and the next begins anew", err)
	}
	if err != nil {
		return Batch{}, fmt.Errorf("read %s: %w", key, err)
	}
	return b, nil
}

// batches yields all batches that there are, oldest first. It ends after the first error: who can't read one knows nothing
// of what it is of.
func batches(ctx context.Context, from bucket.Bucket) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		for info, err := range from.List(ctx, string(content.KeyGarbage), "") {
			var b Batch
			if err == nil {
				if _, bad := pack.CutKey(info.Key, content.KeyGarbage, batchSuffix); bad != nil {
					err = listing("tombstones", fmt.Errorf("%s: %w", info.Key, content.ErrUnknown))
				} else if b, err = readBatch(ctx, from, info.Key); errors.Is(err, content.ErrNotFound) {
					continue
				}
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// put writes a batch over what was read; one that others have changed is bucket.ErrPrecondition. A reply that was lost is
// settled by reading.
func (b Batch) put(ctx context.Context, to bucket.Bucket) (Batch, error) {
	raw, err := b.encode(content.NewCodec())
	if err != nil {
		return b, err
	}
	cond := bucket.IfAbsent()
	if b.etag != "" {
		cond = bucket.IfMatch(b.etag)
	}
	for range secureTries {
		var info bucket.Info
		if info, err = to.Put(ctx, b.key, bucket.Bytes(raw), cond); err == nil {
			b.etag = info.ETag
			return b, nil
		}
		if !errors.Is(err, bucket.ErrUnknown) && !errors.Is(err, bucket.ErrPrecondition) {
			return b, err
		}
		now, rerr := readBatch(ctx, to, b.key)
		switch {
		case rerr == nil && now.same(b):
			return now, nil
		case rerr == nil && now.etag != b.etag, errors.Is(rerr, content.ErrNotFound) && b.etag != "":
			return b, fmt.Errorf("%w: %w", bucket.ErrPrecondition, err)
		case rerr != nil && !errors.Is(rerr, content.ErrNotFound):
			return b, errors.Join(err, rerr)
		}
	}
	return b, err
}

// same reports whether two batches say the same.
func (b Batch) same(o Batch) bool {
	return b.Since == o.Since && b.Epoch == o.Epoch && b.Condemned == o.Condemned && slices.Equal(b.Delete, o.Delete) && slices.Equal(b.Repack, o.Repack)
}

// Secure has all objects of those keys stay that a record names by now, or is about to: it takes them out of the batches
// that have them, and then looks whether they are there; and the same of packs that took over from some of them. It returns
// those that are gone, or go: what they held has to be written anew, and a record that names it committed. Packs that are
// being repacked, or were, count as gone for who begins to refer to frames of theirs, which need not be among those that were
// kept; and not those of which kept knows that they are: it is asked last, when what took over is sure to stay. It costs a list, a
// read for each batch, and a list for each hour that the packs are from.
func Secure(ctx context.Context, at bucket.Bucket, keys []string, kept func(keys []string) map[string]bool) (lost []string, err error) {
	gone, anew := map[string]bool{}, map[string]bool{}
	asked := make(map[string][]string, len(keys)) // the keys that each key is looked at for
	for _, key := range keys {
		asked[key] = []string{key}
	}
	for range chainMax + 1 {
		if len(asked) == 0 {
			break
		}
		f, err := fateOf(ctx, at, asked)
		if err != nil {
			return nil, fmt.Errorf("look what the collection of garbage deletes, or is about to: %w", err)
		}
		next := map[string][]string{}
		for key, for_ := range asked {
			for _, k := range for_ {
				gone[k] = gone[k] || f.gone[key]
				anew[k] = anew[k] || f.anew[key] || f.moved[key] != ""
			}
			if to := f.moved[key]; to != "" {
				next[to] = append(next[to], for_...)
			}
		}
		asked = next
	}
	maps.DeleteFunc(gone, func(_ string, is bool) bool { return !is })
	maps.DeleteFunc(anew, func(key string, is bool) bool { return !is || gone[key] })
	if kept != nil && len(anew) > 0 {
		are := kept(slices.Sorted(maps.Keys(anew)))
		maps.DeleteFunc(anew, func(key string, _ bool) bool { return are[key] })
	}
	maps.Copy(gone, anew)
	return slices.Sorted(maps.Keys(gone)), nil
}

// Follows returns a kept for Secure that knows, by the map of a root, of which packs that were written anew all that this needs
// is where they went: for who begins to name a root, which others may have named and given up.
func Follows(ctx context.Context, at bucket.Bucket, h pack.Head) func(keys []string) map[string]bool {
	return func(keys []string) map[string]bool {
		reader, kept := pack.NewReader(at), map[string]bool{}
		takers := map[pack.ID]*pack.Directory{}
		for _, key := range keys {
			id, err := pack.ParseKey(key)
			if err != nil {
				continue
			}
			if d, err := reader.Taker(ctx, id); err == nil && d.Pack != id {
				takers[id] = d
			}
		}
		for ids := range slices.Chunk(slices.Sorted(maps.Keys(takers)), groupMax) { // the map is read once for each
			needs, _, err := repack.Live(ctx, reader, []pack.Head{h}, repack.Group{Packs: ids})
			for id, frames := range needs {
				kept[id.Key()] = err == nil && holds(takers[id], frames)
			}
		}
		return kept
	}
}

// holds reports whether a pack has all frames that it must.
func holds(d *pack.Directory, frames repack.Frames) bool {
	for cid, must := range frames {
		if _, there := d.Find(cid); must && !there {
			return false
		}
	}
	return true
}

// fate is what becomes of some keys.
type fate struct {
	gone  map[string]bool
	anew  map[string]bool   // they are being written anew
	moved map[string]string // they were, and that has what was kept
}

// fateOf takes keys out of the batches, and looks what is there.
func fateOf[V any](ctx context.Context, at bucket.Bucket, named map[string]V) (fate, error) {
	f := fate{map[string]bool{}, map[string]bool{}, map[string]string{}}
	has := func(key string) bool { _, is := named[key]; return is }
	for b, err := range batches(ctx, at) {
		if err == nil {
			b, err = b.release(ctx, at, has)
		}
		if err != nil {
			return f, err
		}
		for key := range b.keys() {
			switch isAnew := slices.Contains(b.Repack, key); {
			case !b.Condemned || !has(key):
			case isAnew:
				f.anew[key] = true
			default:
				f.gone[key] = true
			}
		}
	}
	infos, err := pack.Infos(ctx, at, slices.Sorted(maps.Keys(named)))
	if err != nil {
		return f, err
	}
	for key := range named {
		info, there := infos[key]
		f.gone[key] = f.gone[key] || !there
		id, err := pack.ParseKey(key)
		if err != nil || info.Size != pack.SizeMin {
			continue
		}
		switch footer, err := pack.ReadFooter(ctx, at, id); {
		case err == nil && footer.Moved() != "":
			f.moved[key] = footer.Moved().Key()
		case err != nil && content.IsDamage(err):
			f.gone[key] = true
		case err != nil:
			return f, err
		}
	}
	return f, nil
}

// release takes keys out of a batch, unless it is condemned, and returns it as it is then.
func (b Batch) release(ctx context.Context, at bucket.Bucket, named func(key string) bool) (Batch, error) {
	var err error
	for range secureTries {
		rest := b.without(named)
		if b.Condemned || rest.size() == b.size() {
			return b, nil
		}
		if rest, err = rest.put(ctx, at); err == nil {
			return rest, nil
		}
		if !errors.Is(err, bucket.ErrPrecondition) {
			return b, err
		}
		now, err := readBatch(ctx, at, b.key)
		if errors.Is(err, content.ErrNotFound) { // all of it is deleted
			b.Condemned = true
			return b, nil
		}
		if b = now; err != nil {
			return b, err
		}
	}
	return b, err
}
