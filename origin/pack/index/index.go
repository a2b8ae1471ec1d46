// Package index is what importers look up: which objects lie where in the packs of a bucket, as far as that
// may be believed. A pack is believed on the word of a member that may write its scope
// (trust.Verifier.OpenPack); of any other, what is asked for is read and hashed first. Whoever can merely
// write to the bucket makes nobody refer to what is not there.
package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Config says which packs to index.
type Config struct {
	Bucket bucket.Bucket
	// Scopes whose packs are indexed.
	Scopes []content.Scope
	// Verifier tells which packs a member vouches for; nil knows no members, and
	// each frame is read before it is referred to.
	Verifier *trust.Verifier
	// First are packs that are referred to rather than others that are believed as much; nil for none.
	First map[pack.ID]bool
	// Dir caches what was read, in one file; "" caches nothing. A damaged file is
	// read anew. Its owner is the only one who may write there.
	Dir string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log receives what is worth telling an operator; nil discards it.
	Log *slog.Logger
}

func (cfg Config) withDefaults() Config {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg
}

// Index knows every object in the packs of some scopes, 48 bytes each. It is a
// Known for importers. Safe for concurrent use.
type Index struct {
	cfg     Config
	reader  *pack.Reader
	packs   []pack.ID
	stamps  map[pack.ID]stamp
	foreign map[uint32]*foreign // by number of the pack: those that no member vouches for
	entries []entry             // by CID, each once
}

// entry is 48 bytes without pointers.
type entry struct {
	cid                 content.CID
	packCodec           uint32 // number of the pack << 8 | codec
	offset, length, raw uint32
}

// stamp is what a list of the bucket says of a pack: written again, it has another.
type stamp struct {
	size     int64
	modified int64 // in ns since 1970
}

// Unchanged reports whether a pack is what it was when the index was loaded; so is one that came later.
func (x *Index) Unchanged(id pack.ID, now bucket.Info) bool {
	s, ok := x.stamps[id]
	return !ok || s == stamp{now.Size, now.Modified.UnixNano()}
}

// Len returns the number of objects known.
func (x *Index) Len() int { return len(x.entries) }

// Locate returns where an object is stored. Either a member vouches for the pack, or the run that the object
// lies in was read and each of its frames hashed, at the first question about it: what a bucket merely says
// is not passed on. Where that fails the object is not known.
func (x *Index) Locate(ctx context.Context, id content.CID) (pack.Location, bool) {
	i, ok := slices.BinarySearchFunc(x.entries, id, func(e entry, id content.CID) int { return compareCID(e.cid, id) })
	if !ok {
		return pack.Location{}, false
	}
	e := &x.entries[i]
	at := pack.Location{
		Pack: x.packs[e.packCodec>>8], Offset: e.offset, Length: e.length, Raw: e.raw, Codec: pack.Codec(e.packCodec),
	}
	if f := x.foreign[e.packCodec>>8]; f != nil && (at.Raw > pack.FrameSizeMax || !f.check(ctx, x, at.Run())) {
		return pack.Location{}, false
	}
	return at, true
}

func compareCID(a, b content.CID) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(b[:])); c != 0 {
		return c
	}
	return bytes.Compare(a[:], b[:])
}

// Load reads what the cache lacks: index objects first, then the directories of packs that none covers. Packs
// that are not in the bucket any more are left out, and so are those whose directory is damaged.
func Load(ctx context.Context, cfg Config) (*Index, error) {
	if cfg.Bucket == nil || len(cfg.Scopes) == 0 {
		return nil, fmt.Errorf("load pack index: %w: no bucket or no scopes", content.ErrInvalid)
	}
	l := &loader{cfg: cfg.withDefaults(), packs: make(map[pack.ID]*gathered)}
	for _, step := range []func(context.Context) error{l.list, l.readObjects, l.readDirectories} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("load pack index: %w", err)
		}
	}
	if l.changed {
		l.writeCache()
	}
	return l.index(), nil
}
