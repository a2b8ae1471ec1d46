package holders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/p2p/wire"
)

// held is what a store has of one volume.
type held struct {
	store *Store
	id    content.VolumeID
	dir   string

	// syncing is held while files are synced, renamed or removed. It is taken before mu.
	syncing sync.Mutex
	mu      sync.Mutex // guards what follows; no bytes are synced under it
	loaded  bool
	noted   bool // a promise was made
	note    note
	chain   []*segment
	spoken  time.Time // when one of whom it promised itself to came last, since the start
	broken  error     // why nothing of it is taken or shown any more
	gone    bool      // it was dropped
}

// segment is one of a volume's, of which the holder has the first bytes.
type segment struct {
	journal.Header
	path           string
	file           *os.File // nil for one that is whole, unless it is being read
	bytes, durable int64
	ends           []place // of entries; what is behind the last one that is durable counts not
	fresh          bool    // it has not its own name yet
}

// place is the end of an entry in a segment.
type place struct {
	seq uint64
	off int64
}

// end is the last entry of which all is durable, and where it ends: 0 where there is none.
func (s *segment) end() place {
	for _, e := range slices.Backward(s.ends) {
		if e.off <= s.durable {
			return e
		}
	}
	return place{s.After.Seq, 0}
}

// seq is the last entry of which all was written.
func (s *segment) seq() uint64 {
	if n := len(s.ends); n > 0 {
		return s.ends[n-1].seq
	}
	return s.After.Seq
}

// ended notes that bytes up to off end with an entry.
func (s *segment) ended(seq uint64, off int64) {
	last := place{s.After.Seq, journal.HeaderSize}
	if n := len(s.ends); n > 0 {
		last = s.ends[n-1]
	}
	if seq > last.seq && off > last.off {
		s.ends = append(s.ends, place{seq, off})
	}
}

// fits reports whether a place is in the segment.
func (s *segment) fits(p wire.Place) bool { return s.Epoch == p.Epoch && s.Number == p.Number }

// errGap is for bytes that something is missing before: nothing was taken.
var errGap = fmt.Errorf("%w: bytes before these are missing", content.ErrUnavailable)

// admits fails unless it is this claim that was promised. Called with mu.
func (h *held) admits(c wire.Claim) error {
	switch {
	case h.gone:
		return fmt.Errorf("%w: what was held of volume %s was dropped", content.ErrNotFound, h.id)
	case h.broken != nil:
		return h.broken
	case !h.loaded || c.Epoch > h.note.claim.Epoch:
		return fmt.Errorf("%w: %s was not promised here", content.ErrUnavailable, c.Describe())
	case c != h.note.claim:
		return h.fenced(c)
	}
	h.spoken = time.Now()
	return nil
}

func (h *held) fenced(c wire.Claim) error {
	return fmt.Errorf("%w: %s is refused, as %s was promised since", content.ErrFenced, c.Describe(), h.note.claim.Describe())
}

// extend writes bytes that come next, and returns what waits until they are durable.
func (h *held) extend(m wire.Extend) func(context.Context) (*wire.Held, []byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.admits(m.Claim)
	if err == nil {
		err = h.write(m)
	}
	switch {
	case errors.Is(err, errGap):
		return func(context.Context) (*wire.Held, []byte, error) { return h.status() }
	case err != nil:
		return refuse(err)
	}
	return func(context.Context) (*wire.Held, []byte, error) {
		h.syncing.Lock()
		defer h.syncing.Unlock()
		if err := h.sync(); err != nil {
			return nil, nil, err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		return nil, nil, h.admits(m.Claim) // else the one that it is promised to was told of these bytes
	}
}

// write writes what the holder has not. Called with mu.
func (h *held) write(m wire.Extend) (err error) {
	i := slices.IndexFunc(h.chain, func(s *segment) bool { return s.fits(m.At) })
	if i < 0 {
		return h.beginSegment(m)
	}
	s := h.chain[i]
	if m.At.Offset > s.bytes {
		return errGap
	}
	defer func() {
		if err == nil {
			s.ended(m.Seq, m.At.Offset+int64(len(m.Bytes)))
		}
	}()
	known := min(int64(len(m.Bytes)), s.bytes-m.At.Offset)
	if err := s.same(m.At.Offset, m.Bytes[:known]); err != nil {
		return err
	}
	rest := m.Bytes[known:]
	switch {
	case len(rest) == 0:
		return nil
	case i < len(h.chain)-1:
		return fmt.Errorf("%w: segment %s has ended, and another one follows it", content.ErrConflict, m.At)
	}
	return h.add(s, rest)
}

// same fails with ErrConflict unless the holder has just these bytes.
func (s *segment) same(off int64, want []byte) (err error) {
	if len(want) == 0 {
		return nil
	}
	f := s.file
	if f == nil {
		if f, err = os.Open(s.path); err != nil {
			return err
		}
		defer f.Close()
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: other bytes are held of segment %x-%x at %d; the disk that they came from was rolled back, or another was cloned from it",
			content.ErrConflict, s.Epoch, s.Number, off)
	}
	return nil
}

// add writes bytes behind a segment. Called with mu.
func (h *held) add(s *segment, b []byte) error {
	if used := h.store.used.Load(); used+int64(len(b)) > h.store.cfg.Quota {
		return fmt.Errorf("%w: %d bytes are held here, of %d", content.ErrNoSpace, used, h.store.cfg.Quota)
	}
	if _, err := s.file.WriteAt(b, s.bytes); err != nil {
		err = errors.Join(err, s.file.Truncate(s.bytes))
		if durable.IsFull(err) {
			err = fmt.Errorf("%w: %w", content.ErrNoSpace, err)
		}
		return err
	}
	s.bytes += int64(len(b))
	h.store.used.Add(int64(len(b)))
	return nil
}

// beginSegment begins one with its first bytes, if it is the next. Called with mu.
func (h *held) beginSegment(m wire.Extend) error {
	if m.At.Offset != 0 {
		return errGap
	}
	head, err := journal.DecodeHeader(m.Bytes)
	if err != nil {
		return err
	}
	if head.Epoch != m.At.Epoch || head.Number != m.At.Number {
		return fmt.Errorf("segment %s: %w: its header says %x-%x", m.At, content.ErrCorrupt, head.Epoch, head.Number)
	}
	if err := h.follows(head, m); err != nil {
		return err
	}
	if len(h.chain) >= wire.SegmentsMax {
		return fmt.Errorf("%w: %d segments of volume %s are held here", content.ErrNoSpace, len(h.chain), h.id)
	}
	s := &segment{Header: head, path: filepath.Join(h.dir, head.Name()), fresh: true}
	if s.file, err = os.OpenFile(s.path+newSuffix, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err = h.store.cfg.fail(stepBegun); err == nil {
		err = h.add(s, m.Bytes)
	}
	if err != nil {
		return errors.Join(err, s.file.Close(), os.Remove(s.path+newSuffix))
	}
	s.ended(m.Seq, s.bytes)
	h.chain = append(h.chain, s)
	return nil
}

// newSuffix ends the name of a segment until the one before it is durable.
const newSuffix = ".new"

// follows fails unless a segment is the next one: errGap when something is missing before it. Called with mu.
func (h *held) follows(next journal.Header, m wire.Extend) error {
	own := next.Volume == h.id
	if !own && !slices.Contains(h.note.ancestors, next.Volume) {
		return fmt.Errorf("segment %s: %w: it is of volume %s, not of %s", m.At, content.ErrInvalid, next.Volume, h.id)
	}
	if next.Epoch > m.Epoch && own {
		return fmt.Errorf("segment %s: %w: it is of a later epoch than its writer's", m.At, content.ErrInvalid)
	}
	if len(h.chain) == 0 {
		if next.After.Seq > h.note.base.Seq {
			return errGap
		}
		return nil
	}
	last := h.chain[len(h.chain)-1]
	switch {
	case next.Number <= last.Number || next.Epoch < last.Epoch && next.Volume == last.Volume || last.Volume == h.id && !own:
		return fmt.Errorf("segment %s: %w: %x-%x is held here in its place", m.At, content.ErrConflict, last.Epoch, last.Number)
	case next.After.Seq != last.seq() || next.After.Number < last.Number || m.Before != last.bytes:
		return errGap // numbers between may be of segments without entries
	}
	return nil
}

// sync makes durable what was written. Called with syncing.
func (h *held) sync() error {
	h.mu.Lock()
	if h.broken != nil || h.gone {
		defer h.mu.Unlock()
		return h.broken // and if it is gone, admits says so
	}
	type due struct {
		*segment
		to int64
	}
	var all []due
	for _, s := range h.chain {
		if s.durable < s.bytes {
			all = append(all, due{s, s.bytes})
		}
	}
	h.mu.Unlock()
	for _, d := range all {
		if err := h.harden(d.segment); err != nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.broken = fmt.Errorf("what is held of volume %s can't be made durable, and is not taken to be: %w", h.id, err)
			h.store.cfg.Log.Error("a holder's disk fails", "volume", h.note.name, "err", err)
			return h.broken
		}
		h.mu.Lock()
		d.durable, d.fresh = d.to, false
		if end := d.end(); end.off > 0 { // those before it are of no use any more
			d.ends = slices.DeleteFunc(d.ends, func(p place) bool { return p.off < end.off })
		}
		h.mu.Unlock()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range h.chain {
		if i < len(h.chain)-1 && s.file != nil && s.durable == s.bytes {
			_ = s.file.Close() // it is durable
			s.file = nil
		}
	}
	return nil
}

// harden makes a segment durable. What comes before it is.
func (h *held) harden(s *segment) error {
	fail := h.store.cfg.fail
	err := fail(stepWritten)
	if err == nil {
		err = h.store.cfg.sync(s.file)
	}
	if err != nil || !s.fresh {
		return err
	}
	if err = fail(stepSynced); err == nil {
		err = os.Rename(s.path+newSuffix, s.path)
	}
	if err == nil {
		err = fail(stepNamed)
	}
	if err == nil {
		err = durable.SyncDir(h.dir)
	}
	return err
}

// status says what is held, durable.
func (h *held) status() (*wire.Held, []byte, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if err := h.load(); err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.said(), nil, nil
}

// said is what a holder says of itself: of what is merged nothing before it has what that needs. Called with mu.
func (h *held) said() *wire.Held {
	heard := h.spoken
	if heard.IsZero() {
		heard = h.store.opened
	}
	out := &wire.Held{Claim: h.note.claim, Base: h.note.base, Quiet: time.Since(heard).Truncate(time.Millisecond)}
	needs, whole := uint64(0), 0
	for _, s := range h.chain {
		if end := s.end(); end.off > 0 {
			out.Segments = append(out.Segments, content.SegmentRef{Volume: s.Volume, Epoch: s.Epoch, After: s.After, Through: content.Position{Number: s.Number, Seq: end.seq}, Bytes: end.off})
			if needs = max(needs, s.Needs); end.seq >= needs {
				whole = len(out.Segments)
			}
		}
	}
	out.Segments = out.Segments[:whole]
	return out
}

// read returns durable bytes.
func (h *held) read(m wire.Read) ([]byte, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.admits(m.Claim); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(h.chain, func(s *segment) bool { return s.fits(m.At) })
	if i < 0 {
		return nil, fmt.Errorf("segment %s: %w", m.At, content.ErrNotFound)
	}
	s := h.chain[i]
	b := make([]byte, max(0, min(int64(m.Length), s.durable-m.At.Offset)))
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.ReadAt(b, m.At.Offset); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

func (h *held) close() error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, s := range h.chain {
		if s.file != nil {
			errs = append(errs, s.file.Close())
		}
	}
	h.chain, h.broken = nil, content.ErrClosed
	return errors.Join(errs...)
}
