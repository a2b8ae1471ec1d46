package index

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/pack"
)

// An index object repeats the directories of some packs, so that an importer
// needs not read each pack's own. It is named like a pack; the local cache of an Index
// has the same form. Whoever may write to the bucket can make one that says anything: of
// it, only what a signature covers is believed.
//
//	offset  size  field
//	     0    32  BLAKE3-256 of all bytes behind it
//	    32     …  dag-cbor map
//
//	magic    text "grange-index/3"
//	sources  keys of index objects that this one contains, rising
//	packs    by rising ID, [ID as text, entries as bytes, signature as bytes, written,
//	         checked]: entries and signature as in the pack, then what only the local
//	         cache has: when the pack was written by the store's clock, in ns since 1970,
//	         and the bits of the runs whose frames were read and hashed by whom keeps it
type object struct {
	Magic   string   `cbor:"magic"`
	Sources []string `cbor:"sources"`
	Packs   []Pack   `cbor:"packs"`
}

const (
	indexMagic  = "grange-index/3"
	indexSuffix = ".index"

	// putTries bounds how often an object is put while the store loses the replies.
	putTries = 5
	// ObjectSizeMax bounds an index object, in bytes: one PUT, and the memory of whoever writes it.
	ObjectSizeMax = 32 << 20
)

// Pack is what an index says of one pack.
type Pack struct {
	_  struct{} `cbor:",toarray"`
	ID pack.ID
	// Entries are the pack's directory, Signature the word for them; as they stand in the pack.
	Entries, Signature []byte
	// Modified and Checked are the local cache's; in an index object nobody looks at them.
	Modified int64
	Checked  uint64
}

// encodeIndex returns an index object. Packs and sources are sorted by it.
func encodeIndex(packs []Pack, sources []string) ([]byte, error) {
	slices.SortFunc(packs, func(a, b Pack) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(sources)
	b, err := content.NewCodec().Marshal(object{indexMagic, sources, packs})
	sum := content.Sum(b)
	return slices.Concat(sum[:], b), err
}

// another reports whether b begins as an index of another version, whatever that has behind its magic: it stands where
// dag-cbor has the shortest name of a map, before that of the packs.
func another(b []byte) bool {
	name, _, _ := strings.Cut(indexMagic, "/")
	_, behind, found := strings.Cut(string(b[:min(len(b), 2*content.CIDSize+len(indexMagic))]), name)
	return found && !strings.HasPrefix(name+behind, indexMagic+"\x65packs")
}

// decodeIndex reads an index object; anything else is ErrCorrupt, one of another version ErrUnknown.
func decodeIndex(b []byte) (packs []Pack, sources []string, err error) {
	var x object
	if another(b) {
		return nil, nil, fmt.Errorf("index: %w", content.ErrUnknown)
	}
	if len(b) < content.CIDSize {
		return nil, nil, fmt.Errorf("index: %w: truncated", content.ErrCorrupt)
	}
	if _, err := content.Verify(content.CID(b[:content.CIDSize]), b[content.CIDSize:]); err != nil {
		return nil, nil, fmt.Errorf("index: %w", err)
	}
	if err := content.NewCodec().Unmarshal(b[content.CIDSize:], &x); err != nil {
		return nil, nil, fmt.Errorf("index: %w", err)
	}
	if x.Magic != indexMagic || !slices.IsSorted(x.Sources) {
		return nil, nil, fmt.Errorf("index: %w: magic %.20q, or sources out of order", content.ErrCorrupt, x.Magic)
	}
	for i, p := range x.Packs {
		if _, err := pack.ParseID(string(p.ID)); err != nil {
			return nil, nil, fmt.Errorf("index: %w: %w", content.ErrCorrupt, err)
		}
		if i > 0 && x.Packs[i-1].ID >= p.ID || len(p.Entries)%pack.EntrySize != 0 || len(p.Signature) > content.RecordSizeMax {
			return nil, nil, fmt.Errorf("index, pack %s: %w: %d bytes of entries, %d of signature, or out of order", p.ID, content.ErrCorrupt, len(p.Entries), len(p.Signature))
		}
	}
	return x.Packs, x.Sources, nil
}

// Store puts an index object of some packs into a bucket, under a fresh id.
func Store(ctx context.Context, to bucket.Bucket, id pack.ID, packs []Pack) error {
	b, err := encodeIndex(packs, nil)
	if err != nil {
		return err
	}
	return putOnce(ctx, to, string(content.KeyIndexes)+string(id)+indexSuffix, b)
}

// putOnce puts what nobody else puts otherwise under that key: whoever finds it there is done, and so a lost reply is
// settled by another try.
func putOnce(ctx context.Context, to bucket.Bucket, key string, b []byte) (err error) {
	for range putTries {
		_, err = to.Put(ctx, key, bucket.Bytes(b), bucket.IfAbsent())
		if errors.Is(err, bucket.ErrPrecondition) {
			return nil
		}
		if !errors.Is(err, bucket.ErrUnknown) {
			break
		}
	}
	return err
}

func cachePath(cfg Config) string {
	var names []string
	for _, s := range cfg.Scopes {
		names = append(names, s.String())
	}
	slices.Sort(names)
	sum := content.Sum([]byte(strings.Join(names, "\n")))
	return filepath.Join(cfg.Dir, "packs-"+hex.EncodeToString(sum[:8])+indexSuffix)
}

// readCacheFile reads the cache; one that is absent, or not kept, is fs.ErrNotExist.
func readCacheFile(cfg Config) (packs []Pack, sources []string, err error) {
	if cfg.Dir == "" {
		return nil, nil, fs.ErrNotExist
	}
	b, err := os.ReadFile(cachePath(cfg))
	if err != nil {
		return nil, nil, err
	}
	return decodeIndex(b)
}

func replaceCacheFile(cfg Config, packs []Pack, sources []string) error {
	b, err := encodeIndex(packs, sources)
	if err == nil {
		err = os.MkdirAll(cfg.Dir, 0o700)
	}
	if err != nil {
		return err
	}
	return durable.Place(cachePath(cfg), b, 0o600)
}

// A mark lies beside the index objects, so that importers list both at once.
const (
	// SuspectSuffix ends the key of a mark, behind the pack's ID.
	SuspectSuffix = ".suspect"
	suspectMagic  = "grange-suspect/1\n"
)

// Suspect marks a pack, of which a frame was read that is not what the pack's own directory says. From then
// on no member's word for the pack counts, and importers read what they reuse of it first: content that is
// imported again is stored anew where it is damaged. A false mark costs them those reads and nothing else, so
// whoever may write to the bucket may set one. It stays when there is one.
func Suspect(ctx context.Context, to bucket.Bucket, id pack.ID) error {
	if err := putOnce(ctx, to, string(content.KeyIndexes)+string(id)+SuspectSuffix, []byte(suspectMagic)); err != nil {
		return fmt.Errorf("mark pack %s as suspect: %w", id, err)
	}
	return nil
}
