package holders

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// promise takes a claim, durable before the answer, unless a later one was promised. The same epoch
// in another start of a process is none that is later: who comes again takes the next.
func (h *held) promise(to trust.PublicKey, m wire.Promise) (_ *wire.Held, _ []byte, err error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	err = h.load()
	h.mu.Lock()
	n, noted := h.note, h.noted
	h.mu.Unlock()
	if noted && m.Epoch <= n.claim.Epoch && m.Claim != n.claim { // however damaged the rest is
		return nil, nil, h.fenced(m.Claim)
	}
	if m.Begin && errors.Is(err, content.ErrCorrupt) { // its writer has all that counts
		if err = h.remove(); err == nil {
			return nil, nil, fmt.Errorf("%w: what was damaged here is gone; ask again", content.ErrUnavailable)
		}
	}
	if err != nil && !(m.Begin && errors.Is(err, content.ErrNotFound)) {
		return nil, nil, err
	}
	defer func() {
		if err != nil && !noted { // it goes as if it had not come
			h.mu.Lock()
			h.gone = true
			h.mu.Unlock()
			h.store.forget(h)
		}
	}()
	end, err := h.settle()
	if err != nil {
		return nil, nil, err
	}
	next := note{m.Claim, n.base, to, n.whole, m.Name, slices.Clone(m.Ancestors)}
	switch {
	case m.Begin:
		next.whole = m.Whole
	case m.Claim != n.claim && end < n.whole: // a record may name this holder all the same
		return nil, nil, fmt.Errorf("%w: what was lost here of volume %s is being filled again, and is not whole before entry %d", content.ErrNotFound, h.id, n.whole)
	}
	if len(m.Ancestors) == 0 { // who inherits does not know of them yet
		next.ancestors = n.ancestors
	}
	if !noted || m.Base.Seq > n.base.Seq {
		next.base = m.Base
	}
	if !noted || n.claim != m.Claim || n.base != next.base || n.whole != next.whole || n.name != next.name || !slices.Equal(n.ancestors, next.ancestors) {
		if err := h.rebase(next); err != nil {
			return nil, nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spoken = time.Now()
	return h.said(), nil, nil
}

// settle has what is held be what was acknowledged, and nothing else: segments that nobody was told of
// may be merged by now. It returns the last entry that is durable here, or in the bucket. Called with syncing.
func (h *held) settle() (end uint64, err error) {
	if err := h.sync(); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	said := h.said()
	for err == nil && len(h.chain) > len(said.Segments) {
		err = h.unlink(len(h.chain) - 1)
	}
	return said.End().Seq, err
}

// rebase writes a note, and lets go of what is not behind its base. Called with syncing.
func (h *held) rebase(n note) error {
	fail := h.store.cfg.fail
	if err := fail(stepPromised); err != nil {
		return err
	}
	if err := durable.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(h.dir, noteName), n.encode(), 0o600); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note, h.noted = n, true
	if err := fail(stepBased); err != nil {
		return err
	}
	for len(h.chain) > 0 && h.chain[0].Number <= n.base.Number { // the oldest first: what is left has no gap
		if err := h.unlink(0); err != nil {
			return err
		}
	}
	return nil
}

// unlink removes a segment for good. Called with syncing and mu.
func (h *held) unlink(i int) error {
	s := h.chain[i]
	path := s.path
	if s.fresh {
		path += newSuffix
	}
	if s.file != nil {
		if err := s.file.Close(); err != nil {
			return err
		}
		s.file = nil
	}
	if err := durable.Remove(path); err != nil {
		return err
	}
	h.chain = slices.Delete(h.chain, i, i+1)
	h.store.used.Add(-s.bytes)
	return nil
}

// cut takes away what lies behind a place, the newest first, so that a crash leaves no
// gap. What the claim's own epoch wrote stays.
func (h *held) cut(m wire.Cut) error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.admits(m.Claim); err != nil {
		return err
	}
	keep := 0 // segments, of which the last may be cut itself
	if m.At.Number != 0 {
		if keep = 1 + slices.IndexFunc(h.chain, func(s *segment) bool { return s.fits(m.At) }); keep == 0 {
			return fmt.Errorf("cut at %s: %w", m.At, content.ErrNotFound)
		}
		if m.At.Offset == 0 {
			keep--
		}
	}
	own := func(s *segment) bool { return s.Epoch == m.Epoch && s.Volume == m.Volume }
	shorter := m.At.Offset > 0 && m.At.Offset < h.chain[keep-1].bytes
	if slices.ContainsFunc(h.chain[keep:], own) || shorter && own(h.chain[keep-1]) {
		return fmt.Errorf("cut at %s: %w: what lies behind was written under this very epoch", m.At, content.ErrConflict)
	}
	for len(h.chain) > keep {
		if err := h.unlink(len(h.chain) - 1); err != nil {
			return err
		}
		if err := h.store.cfg.fail(stepCut); err != nil {
			return err
		}
	}
	if keep == 0 || m.At.Offset == 0 {
		return nil
	}
	s := h.chain[keep-1]
	err := h.reopen(s)
	if err == nil && shorter {
		if err = s.file.Truncate(m.At.Offset); err == nil {
			err = h.store.cfg.sync(s.file)
		}
		if err != nil { // a loss of power may bring back what was cut
			h.broken = fmt.Errorf("what is held of volume %s can't be cut: %w", h.id, err)
			return h.broken
		}
		h.store.used.Add(m.At.Offset - s.bytes)
		s.bytes, s.durable = m.At.Offset, min(s.durable, m.At.Offset)
	}
	s.ends = nil
	s.ended(m.Seq, m.At.Offset)
	return err
}

// reopen opens a segment that is the last one again.
func (h *held) reopen(s *segment) (err error) {
	if s.file == nil {
		s.file, err = os.OpenFile(s.path, os.O_RDWR, 0)
	}
	return err
}

// drop lets go of what the record has, or of all.
func (h *held) drop(m wire.Drop) error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	_ = h.load() // admits says what is wrong
	h.mu.Lock()
	err, n := h.admits(m.Claim), h.note
	h.mu.Unlock()
	switch {
	case err != nil:
		return err
	case m.All:
		return h.remove()
	case m.Base.Seq <= n.base.Seq:
		return nil
	}
	n.base = m.Base
	return h.rebase(n)
}

// sweep removes what is held for a claim, unless somebody came since.
func (h *held) sweep(c wire.Claim, since time.Time) error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if err := h.load(); err != nil && !errors.Is(err, content.ErrCorrupt) { // what is damaged goes, too
		return err
	}
	h.mu.Lock()
	same := h.note.claim == c && !h.spoken.After(since)
	h.mu.Unlock()
	if !same {
		return content.ErrConflict
	}
	return h.remove()
}

// goneSuffix ends the name of the folder of what was dropped, until it is removed.
const goneSuffix = ".gone"

// remove drops all of a volume. Called with syncing.
func (h *held) remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.chain {
		if s.file != nil {
			_ = s.file.Close() // its bytes go
		}
	}
	h.gone, h.chain = true, nil
	size := sizeOf(h.dir)
	err := os.RemoveAll(h.dir + goneSuffix)
	if err == nil {
		err = os.Rename(h.dir, h.dir+goneSuffix)
	}
	if err != nil && !absent(err) {
		return err
	}
	h.store.used.Add(-size)
	h.store.forget(h)
	err = durable.SyncDir(h.store.cfg.Dir)
	if err == nil {
		err = h.store.cfg.fail(stepDropped)
	}
	if err == nil {
		err = os.RemoveAll(h.dir + goneSuffix)
	}
	return err
}

// look returns what was promised, and when somebody spoke of the volume last: for one
// that nobody has since the start, when that note was written.
func (h *held) look() (note, time.Time, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	h.mu.Lock()
	n, at, loaded := h.note, h.spoken, h.loaded
	h.mu.Unlock()
	if loaded && !at.IsZero() {
		return n, at, nil
	}
	path := filepath.Join(h.dir, noteName)
	info, err := os.Stat(path)
	if absent(err) { // if its segments are there, it is lost
		info, err = os.Stat(h.dir)
	}
	if err != nil {
		return note{}, at, err
	}
	b, _ := os.ReadFile(path)
	n, err = decodeNote(b)
	return n, info.ModTime(), err
}

// load reads what the folder has, once. Nothing there is ErrNotFound, what is not as a
// crash may leave it ErrCorrupt. Called with syncing.
func (h *held) load() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.gone:
		return fmt.Errorf("%w: what was held of volume %s was dropped", content.ErrNotFound, h.id)
	case h.broken != nil || h.loaded && h.noted:
		return h.broken
	}
	h.loaded = true
	b, err := os.ReadFile(filepath.Join(h.dir, noteName))
	if err == nil {
		h.note, err = decodeNote(b)
	}
	if err == nil && h.note.claim.Volume != h.id {
		err = fmt.Errorf("%w: it is of volume %s", content.ErrCorrupt, h.note.claim.Volume)
	}
	switch {
	case err == nil:
		h.noted = true
		err = h.loadChain()
	case absent(err):
		if len(h.names()) > 0 {
			err = fmt.Errorf("%w: segments are there, and no promise", content.ErrCorrupt)
			break
		}
		return fmt.Errorf("%w: nothing of volume %s is held here", content.ErrNotFound, h.id)
	}
	if err != nil {
		h.broken = fmt.Errorf("what is held of volume %s in %s: %w", h.id, h.dir, err)
		h.store.cfg.Log.Error("what is held for a volume is damaged, and of no use to it", "dir", h.dir, "err", err)
	}
	return h.broken
}

// names are the files of segments, by name and so by epoch and number.
func (h *held) names() (out []string) {
	files, _ := os.ReadDir(h.dir)
	for _, f := range files {
		if strings.HasSuffix(f.Name(), journal.Suffix) || strings.HasSuffix(f.Name(), newSuffix) {
			out = append(out, f.Name())
		}
	}
	return out
}

// loadChain reads the segments. Called with mu and syncing.
func (h *held) loadChain() error {
	var old []*segment
	for _, name := range h.names() {
		path := filepath.Join(h.dir, name)
		if strings.HasSuffix(name, newSuffix) { // nobody was told of it
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		s, err := openSegment(path)
		if err != nil {
			return err
		}
		if s.Number <= h.note.base.Number {
			old = append(old, s)
		} else {
			h.chain = append(h.chain, s)
		}
	}
	slices.SortFunc(h.chain, func(a, b *segment) int { return cmp.Compare(a.Number, b.Number) })
	for _, s := range old {
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
	for i, s := range h.chain {
		if err := h.linked(i); err != nil {
			return fmt.Errorf("%s: what comes before it is missing: %w", s.path, err)
		}
	}
	for len(h.chain) > 0 {
		if again, err := h.loadLast(h.chain[len(h.chain)-1]); !again || err != nil {
			return err
		}
	}
	return nil
}

// linked fails unless a segment follows the one before it, which has then ended where
// this one says. Called with mu.
func (h *held) linked(i int) error {
	s := h.chain[i]
	if i == 0 {
		if s.After.Seq > h.note.base.Seq {
			return content.ErrCorrupt
		}
		return nil
	}
	before := h.chain[i-1]
	before.ended(s.After.Seq, before.bytes)
	if s.After.Number == before.Number {
		return nil
	}
	f, err := os.Open(before.path) // those between may have had no entries
	if err != nil {
		return err
	}
	defer f.Close()
	if _, seq, _, err := journal.Inspect(f, before.bytes); err != nil || seq != s.After.Seq {
		return errors.Join(content.ErrCorrupt, err)
	}
	return nil
}

// loadLast takes away what a loss of power may have left of an entry, or in its place, at the end of the last
// segment, and all of a merged one that is not whole: then there is another one to look at.
func (h *held) loadLast(s *segment) (again bool, err error) {
	if err := h.reopen(s); err != nil {
		return false, err
	}
	_, seq, whole, err := journal.Inspect(s.file, s.bytes)
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.path, err)
	}
	if whole == 0 {
		return true, h.unlink(len(h.chain) - 1)
	}
	if whole < s.bytes {
		if err := s.file.Truncate(whole); err != nil {
			return false, err
		}
		h.store.used.Add(whole - s.bytes)
	}
	if err := journal.Rewrite(s.file, 0, whole); err != nil {
		return false, err
	}
	s.bytes, s.durable, s.ends = whole, 0, nil // it may be in memory only: the next sync makes it durable
	s.ended(seq, whole)
	return false, nil
}

func openSegment(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head, err := journal.ReadHeader(f)
	if err == nil && head.Name() != filepath.Base(path) {
		err = fmt.Errorf("%w: it is %s", content.ErrCorrupt, head.Name())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &segment{Header: head, path: path, bytes: info.Size(), durable: info.Size()}, nil // loadChain knows how it ends
}
