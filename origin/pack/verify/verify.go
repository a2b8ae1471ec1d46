// Package verify reads an image at the origin as its readers would: from the head in
// its record down the map, each node, page and chunk at the place that its own
// locator page names, decoded and hashed. What packs say of themselves is not asked.
package verify

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// readsAtOnce bounds the ranged reads in flight: enough for a store that is far away.
	readsAtOnce = 8
	// rawAtOnce bounds what one read may unpack to, in bytes: a run of chunks that hardly say anything would
	// fill the memory. With the reads in flight it makes 64 MiB.
	rawAtOnce = 8 << 20
)

// Damage is an object of an image that its readers would not get.
type Damage struct {
	// At is the object's place in the map; a manifest has none.
	At content.Pos
	// What is "chunk", "map node", "manifest" or "end of the pack".
	What string
	// Extent is what should be there; without a Pack nothing says where.
	Extent pack.Extent
	// Err wraps content.ErrNotFound when the pack is missing, else ErrCorrupt, or
	// ErrForbidden for a pack that the image may not refer to.
	Err error
}

// Error names the place of the damage, and the first of what was tried there.
func (d Damage) Error() string {
	what := d.What
	why, _, _ := strings.Cut(d.Err.Error(), "\n")
	switch d.What {
	case whatChunk:
		what = d.At.String()
	case whatNode:
		what = "map " + d.At.String()
	}
	where := "nowhere"
	if d.What == whatEnd {
		return fmt.Sprintf("%s %s: %s", what, d.Extent.Pack.Key(), why)
	}
	if d.Extent.Pack != "" {
		where = fmt.Sprintf("%s at %d+%d", d.Extent.Pack.Key(), d.Extent.Offset, d.Extent.Length)
	}
	return fmt.Sprintf("%s (%s) in %s: %s", what, d.Extent.CID, where, why)
}

// Unwrap returns Err.
func (d Damage) Unwrap() error { return d.Err }

const (
	whatChunk    = "chunk"
	whatNode     = "map node"
	whatManifest = "manifest"
	whatEnd      = "end of the pack"
)

// Report counts what was read.
type Report struct {
	// Chunks and Nodes were read and are what the map says, a node with its page.
	Chunks, Nodes uint64
	// StoredBytes is what the chunks took at the origin.
	StoredBytes uint64
	// Unread chunks were not chosen: their packs can have them, by their lengths.
	Unread uint64
	// Bad and Missing objects; what lies under a bad map node is not known, and not counted.
	Bad, Missing uint64
	// First is the damage of the lowest place in the image, nil without any.
	First *Damage
	// Suspect are the packs, each once, that hold something else than their own
	// directories say, see package index.
	Suspect []pack.ID
}

// Err is nil when all is well, else it wraps First and says how much there is.
func (r Report) Err() error {
	if r.First == nil {
		return nil
	}
	return fmt.Errorf("%d objects are damaged and %d missing at the origin, the first is %w; import the image again from its source, or from an export by a node that holds it", r.Bad, r.Missing, *r.First)
}

// Config says how images are read.
type Config struct {
	Reader *pack.Reader
	// Packs tell by their lengths what can't be there, before it is read, and which packs were rewritten into others. With
	// them the ends of packs are read too, which say what they hold. nil is to read what the map names, and no more.
	Packs *Packs
	// Seen is not read again, and learns what was read; nil is for who reads one image.
	Seen *Seen
	// Choose says of which runs the chunks are read, and, by the number EndOfPack, of which packs the end; nil is all.
	Choose func(pack.Run) bool
	// Progress is told what was found after each read, and Damaged each damage, by one goroutine at a time; they must return
	// at once. nil is nobody.
	Progress func(Report)
	Damaged  func(Damage)
}

// EndOfPack is the number of no run.
const EndOfPack = math.MaxUint32

// Image reads an image as it is configured. Damage is in the Report; the error is of a store that does not answer, or of
// ctx, and then the Report is of a part.
func (cfg Config) Image(ctx context.Context, head pack.Head) (Report, error) {
	cfg.Seen = cmp.Or(cfg.Seen, NewSeen())
	w := &walk{Config: cfg, head: head, shape: head.Root.Shape(), reads: make(chan struct{}, readsAtOnce)}
	packs, err := w.node(ctx, content.Pos{Level: w.shape.Depth()}, head.Top())
	if err == nil {
		err = w.manifest(ctx, packs)
	}
	if err == nil && cfg.Packs != nil {
		err = w.ends(ctx, packs)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done, err
}
