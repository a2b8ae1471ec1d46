package holders

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// Near is a Lane on which this node's own store is asked where it is the holder itself.
type Near struct {
	Lane
	Store *Store
	Self  exchange.Peer
}

// Ask implements Lane.
func (n Near) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	if to != n.Self.ID {
		return n.Lane.Ask(ctx, to, m)
	}
	finish := n.Store.Take(n.Self, m)
	return func() (*wire.Held, []byte, error) { return finish(ctx) }, nil
}

// Inheritance is what the holders of a volume had.
type Inheritance struct {
	// Epoch is the heir's: higher than the record's, and than any that was promised.
	Epoch uint64
	// Segments lie behind what the record has, oldest first, durable in the folder.
	Segments []journal.AdoptedSegment
	// Holders have all of that, and have promised themselves to the heir's epoch: the record
	// has to name them. They are fewer than K where no more could be reached.
	Holders []trust.PublicKey
	// DegradedSince is since when the writer has acknowledged what no holder may have; zero if it has not.
	DegradedSince time.Time
}

// inherit takes over what a volume's holders have. One of them at least, of those that the record names, promises
// to take nothing of an earlier epoch any more; so nothing that is acknowledged later is missed, as each has all
// that was acknowledged. What the one has whose last entry is the latest is copied to K members, and nothing else
// that any has counts from then on. The caller writes {epoch, incarnation, holders} over the record, and only then
// serves the volume. ErrUnavailable: no holder could be reached. ErrConflict: another is taking the volume over.
func (x *heir) inherit(ctx context.Context) (in Inheritance, err error) {
	in = Inheritance{Epoch: x.record.Epoch + 1, DegradedSince: x.record.DegradedSince}
	if in.Epoch, err = x.epoch(ctx); err != nil {
		return in, err
	}
	x.claim = wire.Claim{Volume: x.record.ID, Epoch: in.Epoch, Incarnation: x.incarnation}
	if err := x.promise(ctx); err != nil {
		return in, err
	}
	defer x.stay(ctx)()
	var errs []error
	for _, source := range x.promised {
		if in.Segments, err = x.fetch(ctx, source); err == nil {
			break
		}
		errs = append(errs, fmt.Errorf("holder %s: %w", source.member, err))
		x.Log.Warn("a holder of a volume can't be inherited from", "volume", x.name, "holder", source.member, "err", err)
	}
	if err != nil {
		return in, errors.Join(errs...)
	}
	in.Holders, err = x.spread(ctx, in.Segments)
	return in, err
}

// heir is who takes a volume over, on this node, which is no holder of it any more.
type heir struct {
	*Farm
	name        string
	record      catalog.Volume   // if another has come meanwhile, it inherits again
	through     content.Position // up to where that has all
	incarnation uint64           // of this start of the process
	k           int              // how many holders there are to be
	dir         string           // takes the segments; it is there and empty
	claim       wire.Claim
	promised    []source        // the latest first
	merged      map[string]bool // of what was fetched, by path
}

// source is a holder that has promised itself to the heir, and what it has.
type source struct {
	member trust.PublicKey
	held   wire.Held
}

// holders asks all that the record names at once.
func (x *heir) holders(ctx context.Context, q wire.Message) (all []source, errs []error) {
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, m := range x.record.Holders {
		work.Go(func() {
			held, _, err := asked{x.Lane, identity.PeerID(m)}.ask(ctx, q)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("holder %s: %w", m, err))
			case held != nil:
				all = append(all, source{m, *held})
			}
		})
	}
	work.Wait()
	return all, errs
}

// epoch returns one that is later than the record's, and than any that a holder has
// promised: to another that did not come to write the record, perhaps.
func (x *heir) epoch(ctx context.Context) (uint64, error) {
	epoch := x.record.Epoch + 1
	all, errs := x.holders(ctx, wire.Status{Claim: wire.Claim{Volume: x.record.ID, Epoch: epoch, Incarnation: x.incarnation}})
	if len(all) == 0 {
		return 0, fmt.Errorf("%w: none of its holders answers: %w", content.ErrUnavailable, errors.Join(errs...))
	}
	for _, s := range all {
		switch c := s.held.Claim; {
		case c.Epoch >= epoch && c.Incarnation == x.incarnation:
			epoch = c.Epoch
		case c.Epoch >= epoch:
			epoch = c.Epoch + 1
		}
	}
	return epoch, nil
}

// promise has the holders promise themselves.
func (x *heir) promise(ctx context.Context) error {
	all, errs := x.holders(ctx, wire.Promise{Claim: x.claim, Base: x.through, Name: x.name})
	if len(all) == 0 {
		err := errors.Join(errs...)
		if errors.Is(err, content.ErrFenced) {
			return fmt.Errorf("%w: another node is taking it over: %w", content.ErrConflict, err)
		}
		return fmt.Errorf("%w: none of its holders is in reach, or has what it should: %w", content.ErrUnavailable, err)
	}
	latest := func(s source) (epoch, seq uint64) {
		if n := len(s.held.Segments); n > 0 && s.held.Segments[n-1].Volume == x.record.ID { // others are of a fork's parents
			epoch = s.held.Segments[n-1].Epoch
		}
		return epoch, s.held.End().Seq
	}
	slices.SortStableFunc(all, func(a, b source) int {
		epochA, seqA := latest(a)
		epochB, seqB := latest(b)
		return cmp.Or(cmp.Compare(epochB, epochA), cmp.Compare(seqB, seqA))
	})
	x.promised = all
	return nil
}

// stay has those who have promised themselves hear of this heir, which is not gone, until it is called off.
func (x *heir) stay(ctx context.Context) (end func()) {
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	for _, s := range x.promised {
		work.Go(func() {
			for ; ctx.Err() == nil; wait(ctx, goneAfter/4) {
				_, _, _ = asked{x.Lane, identity.PeerID(s.member)}.ask(ctx, wire.Drop{Claim: x.claim, Base: x.through}) // which it has dropped
			}
		})
	}
	return func() { cancel(); work.Wait() }
}

// wanted are the segments of a holder that the record has not, if they are a chain from there on.
func (x *heir) wanted(held wire.Held) (out []content.SegmentRef, err error) {
	last := held.Base
	if last.Seq > x.through.Seq {
		return nil, fmt.Errorf("%w: it begins with entry %d, and the record that was read has all up to %d; read it again", content.ErrConflict, last.Seq, x.through.Seq)
	}
	for i, s := range held.Segments {
		if i > 0 && s.After.Seq != last.Seq || i == 0 && s.After.Seq > last.Seq {
			return nil, fmt.Errorf("%w: segment %x-%x follows entry %d, and the one before ends with %d", content.ErrCorrupt, s.Epoch, s.Through.Number, s.After.Seq, last.Seq)
		}
		if last = s.Through; last.Seq > x.through.Seq {
			out = append(out, s)
		}
	}
	return out, nil
}

// fetch copies the segments of a holder to this disk, and looks at each entry of them.
func (x *heir) fetch(ctx context.Context, from source) (out []journal.AdoptedSegment, err error) {
	wanted, err := x.wanted(from.held)
	if err != nil {
		return nil, err
	}
	x.merged = map[string]bool{}
	for _, s := range wanted {
		path := filepath.Join(x.dir, fmt.Sprintf("%s-%016x", s.Volume, s.Through.Number))
		head, err := x.copy(ctx, from.member, s, path)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("segment %x-%x: %w", s.Epoch, s.Through.Number, err), os.Remove(path))
		}
		x.merged[path] = head.Merged > 0
		out = append(out, journal.AdoptedSegment{Path: path, Ref: s})
	}
	return out, durable.SyncDir(x.dir)
}

// copy copies one.
func (x *heir) copy(ctx context.Context, from trust.PublicKey, s content.SegmentRef, path string) (head journal.Header, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return head, err
	}
	defer f.Close()
	for at := int64(0); at < s.Bytes; {
		place := wire.Place{Epoch: s.Epoch, Number: s.Through.Number, Offset: at}
		_, b, err := asked{x.Lane, identity.PeerID(from)}.ask(ctx, wire.Read{Claim: x.claim, At: place, Length: int(min(s.Bytes-at, wire.PieceMax))})
		if err == nil && len(b) == 0 {
			err = fmt.Errorf("%w: it ends at %d of %d bytes", content.ErrCorrupt, at, s.Bytes)
		}
		if err == nil {
			_, err = f.Write(b)
		}
		if err != nil {
			return head, err
		}
		at += int64(len(b))
	}
	if err := f.Sync(); err != nil {
		return head, err
	}
	head, seq, end, err := journal.Inspect(f, s.Bytes)
	switch {
	case err != nil:
		return head, err
	case head.Volume != s.Volume || head.Epoch != s.Epoch || head.Number != s.Through.Number || head.After != s.After || seq != s.Through.Seq || end != s.Bytes:
		return head, fmt.Errorf("%w: it is whole up to entry %d only, of %d", content.ErrCorrupt, seq, s.Through.Seq)
	}
	return head, nil
}

// spread gives what was inherited to K members, those first that have most of it, and returns those that have all.
func (x *heir) spread(ctx context.Context, segments []journal.AdoptedSegment) (out []trust.PublicKey, err error) {
	var errs []error
	var all []trust.PublicKey
	for _, s := range x.promised {
		all = append(all, s.member)
	}
	all = append(all, rank(x.record.ID, x.Live())...)
	for i, m := range all {
		if len(out) == x.k || m == x.Self || slices.Contains(all[:i], m) {
			continue
		}
		if err := x.give(ctx, m, segments); err != nil {
			errs = append(errs, fmt.Errorf("member %s: %w", m, err))
			continue
		}
		out = append(out, m)
	}
	if len(out) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("no other one is here; start one, or try again when one is"))
	}
	if len(out) == 0 { // what is on this disk alone is not held
		return nil, fmt.Errorf("%w: no member of the farm takes what was inherited: %w", content.ErrUnavailable, errors.Join(errs...))
	}
	return out, nil
}

// give has a member have these segments, and nothing else. Of one that the record names nothing
// goes, whatever that was: it may be all that is left when this heir does not come to commit.
func (x *heir) give(ctx context.Context, m trust.PublicKey, segments []journal.AdoptedSegment) (err error) {
	q := wire.Promise{Claim: x.claim, Base: x.through, Name: x.name, Ancestors: journal.Ancestors(segments, x.record.ID), Whole: x.through.Seq}
	if n := len(segments); n > 0 {
		q.Whole = segments[n-1].Ref.Through.Seq
	}
	to := asked{x.Lane, identity.PeerID(m)}
	held, err := to.promise(ctx, q)
	if lacks(err) {
		q.Begin = true
		held, err = to.promise(ctx, q)
	}
	if err != nil {
		return err
	}
	same, at, seq := x.common(*held, segments)
	if !q.Begin && slices.Contains(x.record.Holders, m) && held.End().Seq > max(seq, held.Base.Seq) {
		return fmt.Errorf("%w: it has up to entry %d, and no more than %d of what was inherited", content.ErrConflict, held.End().Seq, seq)
	}
	if _, _, err := to.ask(ctx, wire.Cut{Claim: x.claim, At: at, Seq: seq}); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s := &sender{asked: to, ctx: ctx, claim: x.claim, at: at, seq: seq, acks: make(chan ack, pieces)}
	var work sync.WaitGroup
	work.Go(func() {
		for a := range s.acks {
			if err := a.wait(); err != nil {
				fail(err)
			}
		}
	})
	err = x.send(s, segments, same)
	close(s.acks)
	work.Wait()
	return cmp.Or(context.Cause(ctx), err)
}

// send sends what comes behind the first segments, of which the last may be had in part.
func (x *heir) send(s *sender, segments []journal.AdoptedSegment, same int) error {
	for i, segment := range segments {
		off := int64(0)
		if i < same {
			if i < same-1 || s.seq == segment.Ref.Through.Seq {
				continue
			}
			off = s.at.Offset
		}
		f, err := os.Open(segment.Path)
		if err != nil {
			return err
		}
		s.seq = segment.Ref.After.Seq
		_, err = io.Copy(s, io.NewSectionReader(f, off, segment.Ref.Bytes-off))
		if err == nil {
			err = s.flush(segment.Ref.Through.Seq)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// common says how many of the segments a holder has too, the last one in part perhaps, and
// where what it has in common ends: at no place, where it is nothing. What ends with the same entry
// of the same epoch is the same, however it was merged here and there; a part of one is of what was not.
func (x *heir) common(held wire.Held, segments []journal.AdoptedSegment) (same int, at wire.Place, seq uint64) {
	for i, s := range slices.Backward(segments) {
		for _, h := range held.Segments {
			if h.Volume == s.Ref.Volume && h.Epoch == s.Ref.Epoch && h.Through.Number == s.Ref.Through.Number &&
				(h.Through.Seq == s.Ref.Through.Seq || h.Through.Seq < s.Ref.Through.Seq && !x.merged[s.Path]) {
				return i + 1, wire.Place{Epoch: h.Epoch, Number: h.Through.Number, Offset: h.Bytes}, h.Through.Seq
			}
		}
	}
	return 0, at, 0
}
