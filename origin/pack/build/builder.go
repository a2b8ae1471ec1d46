// Package build turns chunks into packs: a Builder stores what is new, refers to
// what stands, and ends the last pack with the map, root and manifest above it.
package build

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Known tells a Builder which objects need not be stored again. It is asked from several goroutines at once,
// and answers for what it says: nobody looks at the bytes again. Answers from packs that the builder's scope
// may not refer to are passed over.
type Known interface {
	Locate(ctx context.Context, id content.CID) (pack.Location, bool)
}

// Config says what to build and how.
type Config struct {
	// Bucket receives the packs.
	Bucket bucket.Bucket
	// Scope of the root and of the packs.
	Scope content.Scope
	// Kind of the root.
	Kind content.RootKind
	// Size of a disk in bytes. A tree is as large as the chunks are that it is given.
	Size int64
	// ChunkSize in bytes, as in a Root; 0 is content.ChunkSizeDefault.
	ChunkSize int
	// Known objects are referred to instead of stored; nil knows none.
	Known Known
	// Signer vouches for the packs, so that importers refer to their frames unread. The zero Signer, or one
	// whose role does not go as far as Scope, leaves that out: others will read what they reuse.
	Signer trust.Signer
	// Base is a root whose subtrees KeepMap takes; nil for none.
	Base *Base
	// Lineage goes into the manifest: ancestors of the root, nearest first.
	Lineage []content.CID
	// Workers hash and compress; 0 is one a core. After each chunk they call Rest with the
	// time that it took, and go on when that returns; nil is at once.
	Workers int
	Rest    func(ctx context.Context, took time.Duration)
	// PackSize is the size at which a pack is closed, in bytes; 0 is pack.SizeTarget.
	PackSize int
	// Now dates the packs; nil is time.Now.
	Now func() time.Time
	// Random names the packs, from several goroutines at once; nil is crypto/rand.
	Random io.Reader
	// Progress is called after each chunk and each upload, by one goroutine at a
	// time; it must return at once.
	Progress func(Stats)
	// OnObject is given every chunk that is not a hole, new or known, and every map node and page that does
	// not stand in the base: what its maker needs to read the root without the bucket. It is called from
	// several goroutines at once and in no order. The bytes are valid until it returns.
	OnObject func(content.Verified)
	// Standing is told again and again, Every so long, which packs in the bucket the root refers to so far, by their keys; its error
	// ends the Builder. nil is for what does not take long.
	Standing func(ctx context.Context, keys []string) error
	Every    time.Duration
	// Codec encodes the metadata; nil makes one.
	Codec *content.Codec
	// Log receives what is worth telling an operator; nil discards it.
	Log *slog.Logger

	// Shared has Fold put what is new into a pack that other roots share; nil is into its
	// own. It is for roots with up to SharedMax of new chunks.
	Shared *Shared

	into *pack.Writer // the pack that is shared; nil for none
	// fold writes no index object: folds dedupe against their lineage, importers
	// alone look up chunks by name.
	fold bool
	// dense compresses as far as can be.
	dense bool
}

const (
	// packsInMemory bounds the memory of a Builder: one pack is filled while the others are sent.
	packsInMemory = 3
	// jobsPerWorker is how many chunks may wait behind a slow one, so that no
	// worker is idle while order is kept.
	jobsPerWorker = 8
	// metaBytesMax is how much map a Builder holds back for the end of the last
	// pack: that of 16 GiB of dense content. What is more goes where it comes up.
	metaBytesMax = 8 << 20
	// aheadMax bounds the chunks that wait for their turn, some 100 bytes each: 128 GiB
	// of them, where a volume has folded after 16.
	aheadMax = 1 << 20
)

func (cfg Config) withDefaults() Config {
	cfg.ChunkSize = cmp.Or(cfg.ChunkSize, content.ChunkSizeDefault)
	cfg.Workers = cmp.Or(cfg.Workers, runtime.GOMAXPROCS(0))
	cfg.PackSize = cmp.Or(cfg.PackSize, pack.SizeTarget)
	cfg.Random = cmp.Or(cfg.Random, rand.Reader)
	cfg.Codec = cmp.Or(cfg.Codec, content.NewCodec())
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnObject == nil {
		cfg.OnObject = func(content.Verified) {}
	}
	return cfg
}

// sign returns how packs are vouched for, nil for not at all.
func (cfg Config) sign() pack.Sign { return pack.SignedBy(cfg.Signer, cfg.Scope, cfg.Now) }

// root returns the root without its map; of a tree, the largest there can be.
func (cfg Config) root() content.Root {
	r := content.Root{Kind: cfg.Kind, Size: cfg.Size, ChunkSize: cfg.ChunkSize}
	if cfg.Kind == content.RootTree {
		r.Size, r.Count = content.SizeMax, content.ChunksMax
	}
	return r
}

func (cfg Config) validate() error {
	if err := cfg.root().Validate(); err != nil {
		return err
	}
	if _, err := content.ParseScope(cfg.Scope.String()); err != nil {
		return err
	}
	switch {
	case cfg.Bucket == nil:
		return fmt.Errorf("%w: no bucket", content.ErrInvalid)
	case cfg.Workers < 0:
		return fmt.Errorf("%w: %d workers", content.ErrInvalid, cfg.Workers)
	case cfg.PackSize < 0 || cfg.PackSize > pack.SizeTarget:
		return fmt.Errorf("%w: packs of %d bytes, the limit is %d", content.ErrInvalid, cfg.PackSize, pack.SizeTarget)
	case len(cfg.Lineage) > content.LineageMax:
		return fmt.Errorf("%w: %d ancestors, the limit is %d", content.ErrInvalid, len(cfg.Lineage), content.LineageMax)
	case cfg.Base != nil:
		return cfg.Base.validate(cfg)
	}
	return nil
}

// Stats counts what a Builder has done so far; kept subtrees are not looked into.
type Stats struct {
	// Chunks that were not holes, and how many of them were new.
	Chunks, NewChunks uint64
	// RawBytes of the chunks that were not holes.
	RawBytes uint64
	// StoredBytes are the frames of these, each different one once.
	StoredBytes uint64
	// NewRawBytes are the raw bytes of the new chunks, and NewStoredBytes their frames.
	NewRawBytes, NewStoredBytes uint64
	// Packs were uploaded, of UploadedBytes in all, metadata included.
	Packs         int
	UploadedBytes uint64
	// Since is when the first of these was put, by the store's clock; zero where that is not known.
	Since time.Time
}

// Builder makes an image out of chunks: it hashes and compresses on all cores, keeps the order, stores each
// new chunk once and uploads full packs in the background; what stands already it keeps unread. It holds
// three packs in memory at most. Its methods are called from one goroutine. Every Builder ends with Finish or
// Abort.
type Builder struct {
	cfg   Config
	root  content.Root
	shape content.Shape
	enc   *zstd.Encoder

	// Chunks go to the workers and, in order, to the sequencer.
	free   chan *job
	jobs   chan *job
	order  chan *job
	next   uint64 // the lowest index that comes next
	size   int64  // of the chunks so far, holes included
	aheads int    // that wait for their turn
	ended  bool

	group   *errgroup.Group
	cancel  context.CancelCauseFunc
	stopped <-chan struct{} // closed when anything in the background failed
	cause   func() error    // why, once stopped is closed
	drained chan struct{}   // closed when the sequencer has placed the last chunk

	assembler *assembler
	assemble  func() (pack.Head, error) // finishes the assembler, ends with the background
	indexer   indexer
	stats     counter
}

// job is a chunk on its way through the Builder, or something else that is done between two chunks.
type job struct {
	turn  func(context.Context) error // what is done in its turn; nil is to place the chunk
	index uint64
	raw   []byte
	cid   content.CID
	known pack.Location // zero = store it
	frame []byte
	codec pack.Codec
	done  chan struct{} // holds one element once the fields above are set
}

var errAborted = fmt.Errorf("aborted: %w", content.ErrClosed)

// New returns a Builder. Workers and uploads end when ctx does.
func New(ctx context.Context, cfg Config) (*Builder, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("new pack builder: %w", err)
	}
	encoder := pack.NewEncoder
	if cfg.dense {
		encoder = pack.NewDenseEncoder
	}
	enc, err := encoder(cfg.Workers + 1) // the sequencer compresses metadata
	if err != nil {
		return nil, fmt.Errorf("new pack builder: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	group, ctx := errgroup.WithContext(ctx)
	inFlight := cfg.Workers * jobsPerWorker
	b := &Builder{
		cfg:     cfg,
		root:    cfg.root(),
		shape:   cfg.root().Shape(),
		enc:     enc,
		free:    make(chan *job, inFlight),
		jobs:    make(chan *job, inFlight),
		order:   make(chan *job, inFlight),
		group:   group,
		cancel:  cancel,
		stopped: ctx.Done(),
		cause:   func() error { return context.Cause(ctx) },
		drained: make(chan struct{}),
		stats:   counter{report: cfg.Progress},
	}
	for range inFlight {
		b.free <- &job{raw: make([]byte, 0, cfg.ChunkSize), done: make(chan struct{}, 1)}
	}
	b.indexer.cfg = cfg
	b.assembler = newAssembler(cfg, b.shape, enc, &b.stats)
	b.assembler.ship = func(s pack.Sealed) { group.Go(func() error { return b.upload(ctx, s) }) }
	b.assemble = func() (pack.Head, error) { return b.assembler.finish(ctx, b.root) }
	for range cfg.Workers {
		group.Go(func() error { b.work(ctx); return nil })
	}
	group.Go(func() error { return b.sequence(ctx) })
	return b, nil
}

// Add appends the chunk at index: exactly ChunkSize bytes of a disk, the last one padded
// with zeros; up to as many of a tree. Indexes rise. Those left out are holes, and so are chunks of all
// zeros. Raw is copied before Add returns. Add waits while the workers or the
// uploads are behind; it fails as soon as anything in the background has.
func (b *Builder) Add(ctx context.Context, index uint64, raw []byte) error {
	if err := b.may(content.Chunk(index)); err != nil {
		return fmt.Errorf("add %w", err)
	}
	if err := b.root.CheckChunk(index, raw); err != nil {
		return fmt.Errorf("add chunk %d: %w", index, err)
	}
	b.next, b.size = index+1, b.size+int64(len(raw))
	if content.IsZero(raw) {
		return nil
	}
	j, err := b.begin(ctx)
	if err != nil {
		return fmt.Errorf("add chunk %d: %w", index, err)
	}
	j.index, j.raw = index, append(j.raw[:0], raw...)
	b.order <- j // both have room for every job there is
	b.jobs <- j
	return nil
}

// Ahead stores a chunk before its turn, if it is new: those that are given first lie
// together, in that order. Each needs its Turn. Otherwise it is as Add.
func (b *Builder) Ahead(ctx context.Context, index uint64, raw []byte) error {
	err := b.root.CheckChunk(index, raw)
	switch {
	case err != nil:
	case b.aheads >= aheadMax:
		err = fmt.Errorf("%w: %d others wait for their turn, as many as may; end this root and change it again", content.ErrInvalid, b.aheads)
	default:
		err = b.may(content.Chunk(index))
	}
	if err != nil {
		return fmt.Errorf("store chunk %d ahead: %w", index, err)
	}
	b.aheads, b.size = b.aheads+1, b.size+int64(len(raw))
	if content.IsZero(raw) {
		return b.inTurn(ctx, func(context.Context) error { return b.assembler.ahead(index, named{}) })
	}
	j, err := b.begin(ctx)
	if err != nil {
		return fmt.Errorf("store chunk %d ahead: %w", index, err)
	}
	j.raw = append(j.raw[:0], raw...)
	j.turn = func(ctx context.Context) error {
		put, err := b.assembler.store(ctx, j)
		if err != nil {
			return err
		}
		b.stats.add(put.count)
		return b.assembler.ahead(index, named{j.cid, put.at})
	}
	b.order <- j
	b.jobs <- j
	return nil
}

// Turn is Add of a chunk that was given to Ahead.
func (b *Builder) Turn(ctx context.Context, index uint64) error {
	if err := b.may(content.Chunk(index)); err != nil {
		return fmt.Errorf("the turn of %w", err)
	}
	b.aheads, b.next = b.aheads-1, index+1
	return b.inTurn(ctx, func(ctx context.Context) error { return b.assembler.turn(ctx, index) })
}

// may fails unless a place is next, or comes later.
func (b *Builder) may(at content.Pos) error {
	switch first, _ := at.Chunks(); {
	case b.ended:
		return fmt.Errorf("%s: %w", at, content.ErrClosed)
	case first < b.next || !b.shape.Contains(at):
		return fmt.Errorf("%s: %w: want chunks %d to %d", at, content.ErrInvalid, b.next, b.shape.Chunks-1)
	}
	return nil
}

func (b *Builder) begin(ctx context.Context) (*job, error) {
	select {
	case j := <-b.free:
		j.turn = nil
		return j, nil
	case <-b.stopped:
		return nil, b.cause()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// work hashes chunks and compresses those that are new.
func (b *Builder) work(ctx context.Context) {
	for {
		var j *job
		select {
		case j = <-b.jobs:
		case <-ctx.Done():
			return
		}
		if j == nil {
			return
		}
		begun := time.Now()
		v := content.Seal(j.raw)
		j.cid, j.known, j.frame = v.CID(), pack.Location{}, j.frame[:0]
		b.cfg.OnObject(v)
		if _, ok := b.assembler.placed.get(j.cid); !ok {
			if j.known, ok = b.assembler.locate(ctx, j.cid); !ok {
				j.frame, j.codec = pack.EncodeFrame(b.enc, j.frame, j.raw)
			}
		}
		j.done <- struct{}{}
		if b.cfg.Rest != nil {
			b.cfg.Rest(ctx, time.Since(begun))
		}
	}
}

// sequence does in order what was asked for.
func (b *Builder) sequence(ctx context.Context) error {
	var again <-chan time.Time
	if b.cfg.Standing != nil {
		again = time.Tick(b.cfg.Every)
	}
	for {
		var j *job
		select {
		case j = <-b.order:
		case <-again:
			if err := b.cfg.Standing(ctx, b.assembler.standing()); err != nil {
				return err
			}
			continue
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if j == nil {
			close(b.drained)
			return nil
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		if j.turn != nil {
			err = j.turn(ctx)
		} else {
			err = b.assembler.chunk(ctx, j)
		}
		if err != nil {
			return err
		}
		b.free <- j
	}
}

// Finish stores what is left with the map nodes, pages, root and manifest, and returns once every pack is in
// the bucket. Nothing new to store = no upload. Until a record names the head, what was uploaded is garbage
// that a later import may reuse.
func (b *Builder) Finish(ctx context.Context) (pack.Head, Stats, error) {
	if b.ended {
		return pack.Head{}, b.stats.get(), fmt.Errorf("finish packs: %w", content.ErrClosed)
	}
	b.ended = true
	if b.root.Kind == content.RootTree {
		b.root.Count, b.root.Size = b.next, b.size
	}
	defer b.cancel(errAborted)
	stop := context.AfterFunc(ctx, func() { b.cancel(context.Cause(ctx)) })
	defer stop()
	close(b.order)
	close(b.jobs)
	var head pack.Head
	var err error
	select {
	case <-b.drained:
		head, err = b.assemble()
	case <-b.stopped:
		err = b.cause()
	}
	if err != nil {
		b.cancel(err)
	}
	if waited := b.group.Wait(); err == nil {
		err = waited
	}
	if err != nil {
		return pack.Head{}, b.stats.get(), fmt.Errorf("finish packs: %w", err)
	}
	b.indexer.flush(ctx)
	return head, b.stats.get(), nil
}

// Manifest returns what Finish has said of the root.
func (b *Builder) Manifest() pack.Manifest { return b.assembler.manifest }

// Abort ends the workers and uploads and waits for them. Packs that are in the
// bucket stay there. After Finish it does nothing.
func (b *Builder) Abort() {
	b.ended = true
	b.cancel(errAborted)
	_ = b.group.Wait() // the caller gave up: nobody is left to tell
}

type counter struct {
	report func(Stats)
	mu     sync.Mutex // guards stats and serializes report
	stats  Stats
}

func (c *counter) add(change func(*Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.stats)
	if c.report != nil {
		c.report(c.stats)
	}
}

func (c *counter) get() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}
