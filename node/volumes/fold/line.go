package fold

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Line is the tails of one volume over its epochs, those of this process behind those that
// were found. Safe for concurrent use.
type Line struct {
	// Bucket is where they go, and Dir says where working files of a volume do.
	Bucket func() (bucket.Bucket, error)
	Dir    func(content.VolumeID) string
	// Ends are places that the record may come to, where a tail is to end: those of
	// snapshots that are not durable yet. nil is none.
	Ends func() []content.Position

	tails atomic.Pointer[Tails] // nil but for the policy origin
}

// Close closes what is kept of a tail whose fate is not known: nobody flushes any more.
func (l *Line) Close() {
	if t := l.tails.Load(); t != nil {
		t.Close()
	}
}

// HasEnded reports whether EndEpoch has.
func (l *Line) HasEnded() bool { return l.tails.Load() != nil }

// Through is up to where EndEpoch has found tails, or they were put since.
func (l *Line) Through() (p content.Position) {
	if t := l.tails.Load(); t != nil {
		p = t.Through()
	}
	return p
}

// EndEpoch ends the epoch that a record has, before the next one is taken: its flushes may
// have gone to the origin under an earlier policy. This process's go on behind what was found, which it returns.
func (l *Line) EndEpoch(ctx context.Context, body catalog.Volume) ([]Stored, error) {
	store, err := l.Bucket()
	if err != nil && body.Policy != catalog.PolicyOrigin {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := EndEpoch(ctx, store, body.ID, body.Epoch, body.Through())
	if err != nil {
		return nil, err
	}
	after := body.Through()
	if n := len(found); n > 0 {
		after = found[n-1].Ref.Through
	}
	l.tails.Store(l.behind(body.ID, after))
	return found, nil
}

// Begin has tails go on behind what a record names.
func (l *Line) Begin(body catalog.Volume) { l.tails.Store(l.behind(body.ID, body.Through())) }

func (l *Line) behind(id content.VolumeID, after content.Position) *Tails {
	return &Tails{line: l, dir: l.Dir(id), last: after}
}

// Of returns the tails of a volume whose record is this node's, nil where its flushes don't
// go to the origin. One that got this policy while it is served begins behind its record.
func (l *Line) Of(body catalog.Volume) *Tails {
	if body.Policy != catalog.PolicyOrigin {
		return nil
	}
	if t := l.tails.Load(); t == nil || t.Through().Seq < body.Through().Seq { // it was folded under another policy since
		l.tails.CompareAndSwap(t, l.behind(body.ID, body.Through()))
	}
	return l.tails.Load()
}

// Tailed has what a volume writes at the origin before a flush is acknowledged, by the tails
// that it has then.
type Tailed func() *Tails

// Persist implements volume.Persister.
func (p Tailed) Persist(ctx context.Context, v *volume.Volume, upTo content.Position) error {
	tails := p()
	if tails == nil {
		return fmt.Errorf("%w: whether the volume is this node's still is not known", content.ErrUnavailable)
	}
	return tails.Persist(ctx, v, upTo)
}
