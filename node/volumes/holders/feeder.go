package holders

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/holders/quorum"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// pieces is how many pieces are on their way to one holder at once: 2 MiB, some milliseconds of a fast link.
	pieces = 8
	// readMax is how much is read of a journal at a time, in bytes.
	readMax = 4 << 20
	// heldWithin is how long a holder may take to make bytes durable: a disk that needs
	// longer makes every flush fail.
	heldWithin = 10 * time.Second
	// pulseAfter is how long nothing goes to a holder before it is asked whether it is one
	// still: so that it is replaced, or has started again, before a flush waits for it.
	pulseAfter = 15 * time.Second
	// leaveWithin is how long it is tried to tell a member that it holds nothing.
	leaveWithin = 3 * time.Second
)

// outdated says that this disk is not what it was, or not the only one; it is an ErrFenced.
type outdated struct{ why error }

func (o outdated) Error() string {
	return fmt.Sprintf("%v: a holder has what this disk has not, so that it was rolled back, or cloned: %v", content.ErrFenced, o.why)
}

func (o outdated) Unwrap() error { return content.ErrFenced }

// asked is a caller's way to one holder.
type asked struct {
	lane Lane
	to   peer.ID
}

// ask sends a request and waits for its end.
func (a asked) ask(ctx context.Context, m wire.Message) (*wire.Held, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, heldWithin)
	defer cancel()
	finish, err := a.lane.Ask(ctx, a.to, m)
	if err != nil {
		return nil, nil, err
	}
	return finish()
}

// promise has a holder promise itself, and returns what it has.
func (a asked) promise(ctx context.Context, m wire.Promise) (*wire.Held, error) {
	held, _, err := a.ask(ctx, m)
	if err == nil && held == nil {
		err = fmt.Errorf("%w: no answer to a promise", content.ErrUnavailable)
	}
	return held, err
}

// lacks reports whether a holder has answered that it has not what it should.
func lacks(err error) bool {
	return !errors.Is(err, content.ErrUnavailable) && (errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt))
}

// feeder brings one holder what the volume writes.
type feeder struct {
	w      *Writer
	member trust.PublicKey
	to     peer.ID
	begin  bool             // it has nothing yet
	late   bool             // it comes in place of another, who may be back soon
	more   chan struct{}    // there may be more
	base   content.Position // that the holder was told of last: of who follows it alone

	joined bool               // it has said what it has: what fails from then on may be the journal
	cancel context.CancelFunc // guarded by the writer's mu
	left   bool               // so is this
}

func (f *feeder) wake() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

func (f *feeder) asked() asked { return asked{f.w.cfg.Lane, f.to} }

// run follows the holder until that fails, or it is left, and tells the state.
func (f *feeder) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.w.mu.Lock()
	f.cancel = cancel
	left := f.left
	f.w.mu.Unlock()
	if left {
		return
	}
	err := f.follow(ctx)
	if errors.Is(err, content.ErrFenced) {
		f.pledged(ctx, err)
	}
	if ctx.Err() != nil {
		return
	}
	f.w.cfg.Log.Warn("a member does not hold what a volume writes", "volume", f.w.cfg.Name, "member", f.to, "err", err)
	f.w.mu.Lock()
	if f.w.feeders[f.member] == f {
		delete(f.w.feeders, f.member)
	}
	f.w.mu.Unlock()
	switch {
	case !f.begin && errors.Is(err, content.ErrConflict): // nobody but a clone of this disk, or one that it was before, has written that
		f.w.stop(outdated{err})
	case errors.Is(err, errMerged):
		f.w.step(quorum.Behind{Member: f.member})
		f.w.mu.Lock()
		based := f.w.through.Seq > f.base.Seq
		f.w.mu.Unlock()
		if based { // before the state had heard of this one
			f.w.step(quorum.Based{})
		}
	case !f.begin && !f.joined && lacks(err):
		f.w.step(quorum.Empty{Member: f.member})
	default:
		f.w.step(quorum.Lost{Member: f.member})
	}
}

// pledged waits for a holder that has promised itself to another epoch: the record tells
// whether the volume is taken over. If whoever was about to is gone, it is too late for that
// one once the record has a later epoch yet, for which the next writer asks the holders.
func (f *feeder) pledged(ctx context.Context, why error) {
	for ; ctx.Err() == nil; wait(ctx, tickInterval) {
		held, _, err := f.asked().ask(ctx, wire.Status{Claim: f.w.cfg.Claim})
		if err != nil || held == nil || held.Claim == f.w.cfg.Claim || held.Epoch < f.w.cfg.Claim.Epoch { // it is asked again
			return
		}
		epoch, act := f.w.cfg.Claim.Epoch, f.w.cfg.Owned
		if held.Quiet >= goneAfter {
			act = func(ctx context.Context) error {
				epoch, err = f.w.cfg.Outbid(ctx, held.Epoch)
				return err
			}
		}
		switch err := act(ctx); {
		case errors.Is(err, content.ErrFenced):
			f.w.stop(fmt.Errorf("%w, and %w", err, why))
			return
		case epoch > f.w.cfg.Claim.Epoch:
			f.w.stop(content.ErrClosed)
			return
		}
	}
}

// leave ends the feeding of a member that is no holder, and tells it.
func (f *feeder) leave(ctx context.Context) {
	f.w.mu.Lock()
	f.left = true
	if f.cancel != nil {
		f.cancel()
	}
	f.w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leaveWithin)
	defer cancel()
	_, _, _ = f.asked().ask(ctx, wire.Drop{Claim: f.w.cfg.Claim, All: true}) // else its sweep finds out
}

// follow brings the holder up to the end of the journal, and each flush from then on.
func (f *feeder) follow(ctx context.Context) error {
	filled := func() {}
	if f.begin {
		if f.late {
			wait(ctx, jitter())
		}
		select {
		case f.w.cfg.Fills <- struct{}{}:
			filled = sync.OnceFunc(func() { <-f.w.cfg.Fills })
			defer filled()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	held, err := f.join(ctx)
	if err != nil {
		return err
	}
	f.joined = true
	end := f.w.journal.End().Seq
	_, met := f.w.cfg.Met.Load(f.member)
	if n := len(held.Segments); n > 0 && held.Segments[n-1].Epoch < f.w.cfg.Since && !met { // what this process has written is not what that is
		end = f.w.cfg.Began
	}
	if held.End().Seq > end {
		return fmt.Errorf("%w: it has entry %d, and the journal ends with %d", content.ErrConflict, held.End().Seq, end)
	}
	if !f.begin {
		if err := f.w.cfg.Joined(); err != nil {
			return err
		}
	}
	f.w.cfg.Met.Store(f.member, nil)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s := &sender{asked: f.asked(), ctx: ctx, claim: f.w.cfg.Claim, seq: held.End().Seq, acks: make(chan ack, pieces)}
	if n := len(held.Segments); n > 0 {
		s.at = wire.Place{Epoch: held.Segments[n-1].Epoch, Number: held.End().Number, Offset: held.Segments[n-1].Bytes}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.settle(s.acks, fail)
	}()
	err = f.feed(ctx, s, held, filled)
	close(s.acks)
	<-done
	return err
}

// join promises, and has a member that is to begin have nothing.
func (f *feeder) join(ctx context.Context) (*wire.Held, error) {
	w := f.w
	w.mu.Lock()
	m := wire.Promise{Claim: f.w.cfg.Claim, Base: w.through, Name: w.cfg.Name, Ancestors: w.cfg.Ancestors, Begin: f.begin, Whole: w.state.Needed()}
	w.mu.Unlock()
	held, err := f.asked().promise(ctx, m)
	if err == nil && f.begin && len(held.Segments) > 0 {
		if _, _, err = f.asked().ask(ctx, wire.Drop{Claim: m.Claim, All: true}); err == nil {
			held, err = f.asked().promise(ctx, m)
		}
	}
	return held, err
}

// feed sends what the journal has, again and again; filled is called when that is all.
func (f *feeder) feed(ctx context.Context, s *sender, held *wire.Held, filled func()) error {
	at := held.End()
	f.base = held.Base
	f.w.step(quorum.Had{Member: f.member, Seq: at.Seq})
	pulse := time.NewTimer(pulseAfter)
	defer pulse.Stop()
	for ctx.Err() == nil {
		f.w.mu.Lock()
		through := f.w.through
		f.w.mu.Unlock()
		if through.Seq > f.base.Seq {
			if _, _, err := f.asked().ask(ctx, wire.Drop{Claim: s.claim, Base: through}); err != nil {
				return err
			}
			f.base = through
			if at.Seq < f.base.Seq { // what it lacked is in the bucket
				at, s.at, s.seq = f.base, wire.Place{}, f.base.Seq
				f.w.step(quorum.Had{Member: f.member, Seq: f.base.Seq}) // nothing may ever come behind it
			}
		}
		next, n, err := f.w.journal.ReadSegments(s, at, readMax)
		if err == nil && n > 0 {
			err = s.flush(next.Seq)
		}
		if err != nil {
			return err
		}
		if at = next; n > 0 {
			continue
		}
		filled()
		pulse.Reset(pulseAfter)
		select {
		case <-f.more:
		case <-pulse.C:
			if _, _, err := f.asked().ask(ctx, wire.Promise{Claim: s.claim, Base: f.base, Name: f.w.cfg.Name, Ancestors: f.w.cfg.Ancestors}); err != nil {
				return err
			}
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// settle waits for what was sent to be durable, and says so.
func (f *feeder) settle(acks <-chan ack, fail context.CancelCauseFunc) {
	var failed error
	for a := range acks {
		switch err := a.wait(); {
		case failed != nil:
		case err != nil:
			failed = err
			fail(err)
		default:
			f.w.step(quorum.Had{Member: f.member, Seq: a.seq})
		}
	}
}

// errMerged says that the journal can't be gone on with where a holder's copy ends.
var errMerged = fmt.Errorf("%w: what the holder lacks of the journal has been merged with what it has", content.ErrNotFound)

// ack is bytes on their way, after which the holder has all up to seq; 0 is nothing new.
type ack struct {
	finish func() (*wire.Held, []byte, error)
	cancel context.CancelFunc
	seq    uint64
}

// wait returns when the holder has them, durable, or says why it has not.
func (a ack) wait() error {
	defer a.cancel()
	held, _, err := a.finish()
	if err == nil && held != nil {
		err = fmt.Errorf("%w: it has all up to entry %d only", content.ErrUnavailable, held.End().Seq)
	}
	return err
}

// sender cuts the bytes of segments into pieces for one holder.
type sender struct {
	asked
	ctx   context.Context
	claim wire.Claim
	at    wire.Place // where the next bytes go, unless they begin a segment
	seq   uint64     // of the last entry that is sent whole
	needs uint64     // what is sent is not whole before the holder has this entry too
	acks  chan ack
	buf   []byte
	begun bool // pieces of what is being written were sent
}

var _ io.Writer = (*sender)(nil)

// Write takes bytes of one segment, until flush. A piece goes once more comes behind it.
func (s *sender) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		if len(s.buf) == wire.PieceMax {
			if err := s.send(s.seq); err != nil {
				return done, err
			}
		}
		n := min(len(b)-done, wire.PieceMax-len(s.buf))
		s.buf = append(s.buf, b[done:done+n]...)
		done += n
	}
	return len(b), nil
}

// flush sends what is left, with which the entry seq ends.
func (s *sender) flush(seq uint64) error {
	err := s.send(seq)
	s.begun = false
	return err
}

func (s *sender) send(seq uint64) error {
	m := wire.Extend{Claim: s.claim, At: s.at, Seq: seq, Bytes: s.buf}
	if !s.begun {
		if h, err := journal.DecodeHeader(s.buf); err == nil { // an entry does not begin like one
			if h.Merged > 0 && h.After.Seq < s.seq {
				return errMerged
			}
			s.needs = max(s.needs, h.Needs)
			m.Before, m.At = s.at.Offset, wire.Place{Epoch: h.Epoch, Number: h.Number}
		}
		s.begun = true
	}
	ctx, cancel := context.WithTimeout(s.ctx, heldWithin)
	finish, err := s.lane.Ask(ctx, s.to, m)
	if err != nil {
		cancel()
		return err
	}
	s.at, s.seq = m.At, seq
	s.at.Offset += int64(len(m.Bytes))
	s.buf = s.buf[:0]
	if seq < s.needs {
		seq = 0
	}
	select {
	case s.acks <- ack{finish, cancel, seq}:
		return nil
	case <-s.ctx.Done():
		cancel()
		return context.Cause(s.ctx)
	}
}
