package fold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
)

// Journal is what a fold needs of a volume. *volume.Volume is one, and says what each does.
type Journal interface {
	Seal(ctx context.Context) (content.Position, error)
	Keep(p content.Position) error
	Release(p content.Position)
	Merge(ctx context.Context, w io.Writer, after, through content.Position) (content.SegmentRef, error)
	Changes(after, through content.Position, off int64) iter.Seq2[blockdev.Range, error]
	ReadAsOf(ctx context.Context, p []byte, off int64, through content.Position) error
	Rebase(src volume.Source, size int64, chunkSize int, base content.Position) error
}

// Step is a place of the protocol at which a crash leaves something behind that the next
// start has to understand.
type Step string

// The steps, in their order.
const (
	StepSealed   Step = "sealed"   // the journal has a sealed end, nothing else happened
	StepMerged   Step = "merged"   // a segment lies in a working file
	StepStored   Step = "stored"   // it is in the bucket, and no record names it
	StepRecorded Step = "recorded" // the record names it
	StepSettled  Step = "settled"  // the snapshots up to there are durable
	StepPacked   Step = "packed"   // the chunks of a new root are in the bucket, and no record names it
	StepFolded   Step = "folded"   // the record names the root, and no segments
	StepRebased  Step = "rebased"  // the journal here is cut
	StepRemoved  Step = "removed"  // objects went that the record does without
)

// goneTries is how often a root is written whose packs are gone when a record names them: each
// takes a store, or this host, that stood still for longer than the grace.
const goneTries = 3

// overtakenTries is how often a fold builds on what it has for the record: the one before may have
// written another, and not have learnt that.
const overtakenTries = 2

// Config is what a Fold is built from.
type Config struct {
	Journal Journal
	// Bucket returns the origin, or says why nothing can be written to it.
	Bucket func() (bucket.Bucket, error)
	// Record returns the body of the record as it was last known, and Revise changes it as
	// the one who holds the volume: change is called with what stands, again if another
	// has written meanwhile. Who lost the volume gets content.ErrFenced.
	Record func() catalog.Volume
	Revise func(ctx context.Context, change func(*catalog.Volume) error) error
	// Root makes a root readable.
	Root func(ctx context.Context, head pack.Head) (volume.Source, error)
	// Pending are the places of snapshots that are not durable yet, rising; by those SizeAt is how large the
	// volume was at most at a place. Settle makes those durable that the record reaches, given what it says.
	Pending func() []content.Position
	SizeAt  func(content.Position) int64
	Settle  func(ctx context.Context, now catalog.Volume) error
	// Tails are those of a volume whose flushes go to the bucket, nil for others.
	Tails func() *Tails
	// Dir takes working files: those of a crash are removed by the system.
	Dir string
	// Scope and Signer are those of the packs.
	Scope  content.Scope
	Signer trust.Signer
	// Keep is a build.Config's OnObject.
	Keep func(content.Verified)
	// Packs are those of several volumes; nil has each fill its own.
	Packs *build.Shared
	// Rest is that of a build.Config.
	Rest func(ctx context.Context, took time.Duration)
	Now  func() time.Time
	Log  *slog.Logger
	// At is told of each step; for tests, which end the process there.
	At func(Step)
}

// Fold folds one volume. Its methods are called in turn.
type Fold struct {
	cfg Config
	// end is up to where the record has the journal: kept, so that the next segment
	// begins just there. nil is none.
	end *content.Position
	// last says that no other may follow the one under way, and garbage are keys of segments
	// that no record names.
	last    bool
	garbage []string
	// root is what the last one has made.
	root build.Base
	// tailed says that the one under way began where a tail ends.
	tailed bool
}

// New builds a Fold of a volume that is open.
func New(cfg Config) *Fold {
	f := &Fold{cfg: cfg}
	if end := cfg.Record().Through(); cfg.Journal.Keep(end) == nil { // else the next segment has some of the last one's
		f.end = &end
	}
	return f
}

// Loosen lets the journal forget where the record ends, so that it need not keep what was
// written before and after: the next segment may have some of the last one's then. It is
// for a volume that can't be folded for long.
func (f *Fold) Loosen() {
	if f.end != nil { // which is the zero Position for a volume that was just made
		f.cfg.Journal.Release(*f.end)
		f.end = nil
	}
}

// Run is the write protocol: it moves all that was written before the call to the bucket
// and into the record, and cuts the journal as far as that went. What fails leaves the
// volume as it was, or further on; whoever calls again goes on from there.
func (f *Fold) Run(ctx context.Context, want Want) error {
	store, err := f.cfg.Bucket()
	if err != nil {
		return fmt.Errorf("fold: %w", err)
	}
	tails := f.cfg.Tails()
	f.tailed, f.last = tails != nil, want == Chunks
	through, err := f.seal(ctx, tails)
	if err != nil {
		return fmt.Errorf("fold: %w", err)
	}
	defer func() {
		if through != f.cfg.Record().Through() {
			f.cfg.Journal.Release(through)
			return
		}
		f.Loosen()
		f.end = &through
	}()
	f.cfg.At(StepSealed)
	for range overtakenTries {
		was := f.cfg.Record()
		if err = f.settle(ctx, store, through); err == nil {
			err = f.move(ctx, store, through, want)
		}
		if now := f.cfg.Record(); !errors.Is(err, content.ErrConflict) || now.Base == was.Base && slices.Equal(now.Segments, was.Segments) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("fold: %w", err)
	}
	return nil
}

// Seal ends the open segment of the journal and returns where that is: a place that a
// snapshot may name, which is kept until it is given to Release. Under the policy `origin`
// all up to there is in the bucket then, where a tail ends.
func (f *Fold) Seal(ctx context.Context) (content.Position, error) { return f.seal(ctx, f.cfg.Tails()) }

func (f *Fold) seal(ctx context.Context, tails *Tails) (content.Position, error) {
	if tails != nil {
		return tails.seal(ctx)
	}
	return f.cfg.Journal.Seal(ctx)
}

// settle brings the record to the place of each snapshot that is not durable, for a
// snapshot's record names what the volume's does up to there. Those that came since the
// fold has sealed the journal are the next one's: a record never goes back.
func (f *Fold) settle(ctx context.Context, store bucket.Bucket, through content.Position) error {
	for _, at := range f.cfg.Pending() {
		if at.Seq > through.Seq {
			break
		}
		if f.cfg.Journal.Keep(at) == nil { // also once its snapshot needs it no more
			defer f.cfg.Journal.Release(at)
		}
		if err := f.move(ctx, store, at, Safe); err != nil {
			return err
		}
	}
	return nil
}

// reached makes those snapshots durable that the record reaches, whose objects were seen to
// be there: also those that named its place while it was on its way there.
func (f *Fold) reached(ctx context.Context) error {
	now := f.cfg.Record()
	if !slices.ContainsFunc(f.cfg.Pending(), func(at content.Position) bool { return at.Seq <= now.Through().Seq }) {
		return nil
	}
	err := f.cfg.Settle(ctx, now)
	f.cfg.At(StepSettled)
	return err
}

// move brings the record to a place of the journal.
func (f *Fold) move(ctx context.Context, store bucket.Bucket, through content.Position, want Want) error {
	now := f.cfg.Record()
	s := stands{segments: now.Segments, want: want}
	if through.Seq > now.Through().Seq {
		var err error
		if _, s.behind, err = Touched(f.cfg.Journal, now.Head, now.Through(), through); err != nil {
			return err
		}
		s.run = f.cfg.Tails().run(now.Through(), through)
	} else if want == Safe || len(now.Segments) == 0 {
		return f.reached(ctx)
	}
	touched, _, err := Touched(f.cfg.Journal, now.Head, now.Base, through)
	if err != nil {
		return err
	}
	s.touched = int64(len(touched)) * int64(chunkSize(now.Head))
	for p := choose(s); !p.chunks; p.from-- {
		err := f.upload(ctx, store, p, through)
		if p.run.Tails > 0 && errors.Is(err, content.ErrNotFound) { // the journal did not keep where they begin
			p.run = content.SegmentRef{}
			err = f.upload(ctx, store, p, through)
		}
		if !errors.Is(err, content.ErrExists) && !errors.Is(err, content.ErrInvalid) {
			return err
		}
		if p.from == 0 || errors.Is(err, content.ErrInvalid) { // keys with another beginning are tried before
			break
		}
	}
	return f.chunks(ctx, store, through, touched)
}

// upload has all up to a place in the record, as a plan says: in one segment that is put into
// the bucket, in tails that are there, or in both.
func (f *Fold) upload(ctx context.Context, store bucket.Bucket, p plan, through content.Position) error {
	was := f.cfg.Record()
	named, after := slices.Clone(was.Segments[:p.from]), was.Base
	if p.from > 0 {
		after = was.Segments[p.from-1].Through
	}
	if p.run.Tails > 0 {
		through = p.run.After
	}
	if after != through {
		file, err := newWorking(f.cfg.Dir)
		if err != nil {
			return err
		}
		defer file.close()
		ref, err := f.cfg.Journal.Merge(ctx, file, after, through)
		if f.cfg.At(StepMerged); err != nil {
			return err
		}
		named = append(named, ref)
		if err := putOnce(ctx, store, ref.Key(), file.body(0, ref.Bytes)); err != nil { // behind the record it is never garbage
			return err
		}
		f.cfg.At(StepStored)
	}
	if p.run.Tails > 0 {
		named = append(named, p.run)
	}
	if err := f.revise(ctx, was, StepRecorded, func(v *catalog.Volume) { v.Segments = named }); err != nil {
		return err
	}
	err := f.reached(ctx)
	if err == nil {
		f.remove(ctx, store, was)
	}
	return err
}

// revise changes the record that was built on, says when, and goes past a step. Where
// flushes went to the origin since the fold began, their tails may come by the place where
// that ends, and nobody would find them from there.
func (f *Fold) revise(ctx context.Context, was catalog.Volume, step Step, change func(*catalog.Volume)) error {
	err := f.cfg.Revise(ctx, func(v *catalog.Volume) error {
		if v.Base != was.Base || !slices.Equal(v.Segments, was.Segments) {
			return fmt.Errorf("the record, which has all up to %v now, %w meanwhile", v.Through(), content.ErrConflict)
		}
		if v.Policy == catalog.PolicyOrigin && !f.tailed {
			return fmt.Errorf("flushes go to the origin by now, as they did not when it began: %w; the next one takes them along", content.ErrConflict)
		}
		change(v)
		v.FoldedAt = f.cfg.Now()
		return nil
	})
	if err == nil {
		f.cfg.At(step)
	}
	return err
}

// remove deletes the segments that the record names no more, but for those that a
// snapshot or a fork may name: those begin before Shared, or are another volume's. What
// is left by an error is garbage.
func (f *Fold) remove(ctx context.Context, store bucket.Bucket, was catalog.Volume) {
	now := f.cfg.Record()
	for _, s := range was.Segments {
		switch {
		case slices.Contains(now.Segments, s) || s.Volume != now.ID || s.After.Seq < now.Shared:
		case s.Tails == 0:
			f.garbage = append(f.garbage, s.Key())
		default:
			keys, err := catalog.TailKeys(ctx, store, s)
			for n := 0; n < len(keys) && err == nil; n++ {
				err = store.Delete(ctx, keys[n])
			}
			if err != nil {
				f.cfg.Log.Info("tails that no record names are left to the collection of garbage", "volume", s.Volume, "behind", s.After.Seq, "err", err)
			}
		}
	}
	for n := 0; len(f.garbage) > 0 && (f.last || n < removeMax); n++ {
		key := f.garbage[0]
		f.garbage = f.garbage[1:]
		if err := store.Delete(ctx, key); err != nil {
			f.cfg.Log.Info("a segment that no record names is left to the collection of garbage", "key", key, "err", err)
			break
		}
	}
	if tails := f.cfg.Tails(); tails != nil {
		tails.cut(ctx, store, now)
	}
	f.cfg.At(StepRemoved)
}

// chunks has all up to a place in a new root, of which those chunks are new at most, and
// cuts the journal there.
func (f *Fold) chunks(ctx context.Context, store bucket.Bucket, through content.Position, touched []uint64) error {
	was := f.cfg.Record()
	was.Size = min(was.Size, f.cfg.SizeAt(through)) // it may have grown since, and no snapshot has a larger root
	var base build.Base
	switch {
	case was.Head == nil:
	case f.root.Head == *was.Head: // as the last one has left it
		base = f.root
	default:
		var err error
		if base, err = build.ReadBase(ctx, pack.NewReader(store), *was.Head); err != nil {
			return err
		}
	}
	cfg := build.Config{Bucket: store, Scope: f.cfg.Scope, Size: was.Size, ChunkSize: chunkSize(was.Head), Signer: f.cfg.Signer, Now: f.cfg.Now, Log: f.cfg.Log,
		OnObject: f.cfg.Keep, Rest: f.cfg.Rest, Workers: max(1, runtime.GOMAXPROCS(0)/2)} // guests are not to wait for a processor
	if len(touched)*cfg.ChunkSize <= build.SharedMax {
		cfg.Shared = f.cfg.Packs
	}
	changes := f.read(ctx, was, through, slices.Values(touched))
	for range goneTries {
		now, err := f.commitRoot(ctx, cfg, base, changes, through)
		if err == nil {
			f.root = now
			return f.cut(ctx, store, was, now.Head, through)
		}
		f.root = build.Base{}
		var gone *catalog.GoneError
		if !errors.As(err, &gone) {
			return err
		}
		f.cfg.Log.Error("packs of a volume were gone when its record named them; they are written again", "volume", was.ID, "err", err)
		if slices.ContainsFunc(gone.Keys, base.Manifest.Has) {
			base, changes, cfg.Shared = build.Base{}, f.read(ctx, was, through, all(was)), nil
		}
	}
	return fmt.Errorf("%w: packs are gone when the record names them, %d times", content.ErrUnavailable, goneTries)
}

// commitRoot builds a root and has it in the record.
func (f *Fold) commitRoot(ctx context.Context, cfg build.Config, base build.Base, changes iter.Seq2[build.Change, error], through content.Position) (build.Base, error) {
	was := f.cfg.Record()
	now, stats, err := build.Fold(ctx, cfg, base, pack.NewReader(cfg.Bucket).ReadNode, changes)
	if f.cfg.At(StepPacked); err != nil {
		return now, err
	}
	f.cfg.Log.Debug("a volume was folded", "volume", was.ID, "chunks", stats.NewChunks, "bytes", stats.UploadedBytes)
	return now, f.revise(ctx, was, StepFolded, func(v *catalog.Volume) {
		v.Folded = catalog.Folded{Head: &now.Head, Lineage: now.Manifest.Lineage, Base: through, Since: stats.Since}
	})
}

// cut does without what the root has: here, then in the bucket.
func (f *Fold) cut(ctx context.Context, store bucket.Bucket, was catalog.Volume, head pack.Head, through content.Position) error {
	if err := f.reached(ctx); err != nil {
		return err
	}
	src, err := f.cfg.Root(ctx, head)
	if err == nil {
		f.Loosen()
		err = f.cfg.Journal.Rebase(src, head.Root.Size, head.Root.ChunkSize, through)
	}
	if err == nil {
		f.cfg.At(StepRebased)
		f.remove(ctx, store, was)
	}
	return err
}

// all yields all chunks of a volume.
func all(v catalog.Volume) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for index := int64(0); index*int64(chunkSize(v.Head)) < v.Size && yield(uint64(index)); index++ {
		}
	}
}

// read reads chunks as they were at a place; what is past the end of the disk is zeros.
func (f *Fold) read(ctx context.Context, was catalog.Volume, through content.Position, chunks iter.Seq[uint64]) iter.Seq2[build.Change, error] {
	return func(yield func(build.Change, error) bool) {
		raw := make([]byte, chunkSize(was.Head))
		for index := range chunks {
			off := int64(index) * int64(len(raw))
			n := min(int64(len(raw)), was.Size-off)
			clear(raw[n:])
			err := f.cfg.Journal.ReadAsOf(ctx, raw[:n], off, through)
			if !yield(build.Change{Index: index, Raw: raw}, err) || err != nil {
				return
			}
		}
	}
}

// Touched returns the chunks of a volume with a root that were written or zeroed behind a
// place and up to another, rising, and how many bytes of them. It is a list: who goes through
// what a journal has changed keeps its files.
func Touched(j Journal, root *pack.Head, after, through content.Position) (chunks []uint64, bytes int64, err error) {
	size := int64(chunkSize(root))
	for r, err := range j.Changes(after, through, 0) {
		if err != nil {
			return nil, 0, err
		}
		index := uint64(r.Offset / size)
		if n := len(chunks); n > 0 {
			index = max(index, chunks[n-1]+1)
		}
		for ; int64(index)*size < r.Offset+r.Length; index++ {
			chunks = append(chunks, index)
		}
		bytes += r.Length
	}
	return chunks, bytes, nil
}

func chunkSize(root *pack.Head) int {
	if root != nil {
		return root.Root.ChunkSize
	}
	return content.ChunkSizeDefault
}

// working is a file that goes with its process, or is swept by the next start.
type working struct{ *os.File }

func newWorking(dir string) (*working, error) {
	file, err := os.CreateTemp(dir, durable.TempPrefix+"fold-*")
	if err != nil {
		return nil, fmt.Errorf("a working file: %w", err)
	}
	_ = os.Remove(file.Name()) // where that is not allowed yet, close does it
	return &working{file}, nil
}

// body is a part of the file.
func (w *working) body(off, length int64) bucket.Body { return io.NewSectionReader(w, off, length) }

func (w *working) close() {
	_ = errors.Join(w.Close(), os.Remove(w.Name())) // it holds nothing that is needed
}
