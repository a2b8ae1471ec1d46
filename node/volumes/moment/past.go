package moment

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/fold"
)

// Past compares a volume as it is now with its snapshots, for one who asks for a part of it
// again and again: what that takes stays open until Close. Safe for concurrent use.
type Past struct {
	// Open opens a snapshot by its number, and with 0 the volume as it is now; IsNow reports
	// whether it is still that.
	Open  func(ctx context.Context, number uint64) (Moment, error)
	IsNow func(Moment) bool
	Nodes func() (fold.Nodes, error)

	mu     sync.Mutex // held while one asks
	opened map[uint64]Moment
}

// Changes yields where the volume differs from a snapshot within a range, by offset, in whole
// units. It costs what lies in the range, up to where yield wants no more.
func (p *Past) Changes(ctx context.Context, from uint64, within blockdev.Range) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		was, err := p.open(ctx, from)
		var now Moment
		if err == nil {
			now, err = p.open(ctx, 0)
		}
		if err == nil {
			err = Pair{was, now, p.Nodes}.Differ(ctx, within, func(x blockdev.Range) bool { return yield(x, nil) })
		}
		if err != nil && !errors.Is(err, io.EOF) { // else who asked has enough
			yield(blockdev.Range{}, err)
		}
	}
}

func (p *Past) open(ctx context.Context, number uint64) (Moment, error) {
	m, ok := p.opened[number]
	if ok && (number != 0 || p.IsNow(m)) {
		return m, nil
	}
	if ok {
		delete(p.opened, number)
		if err := m.Close(); err != nil {
			return m, err
		}
	}
	m, err := p.Open(ctx, number)
	if err != nil {
		return m, err
	}
	if p.opened == nil {
		p.opened = map[uint64]Moment{}
	}
	p.opened[number] = m
	return m, nil
}

// Close gives back what was opened; nobody asks any more.
func (p *Past) Close() error {
	var errs []error
	for _, m := range p.opened {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
