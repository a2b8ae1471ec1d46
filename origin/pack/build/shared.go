package build

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// SharedMax bounds the chunks of a root that shares a pack, in bytes: more fills packs of its
// own, and others would wait while it does.
const SharedMax = 4 << 20

// Shared has roots that are folded at about the same time share packs: while one pack is
// sent, those that come meanwhile fill the next, each in its turn, so that what is of one root
// lies together. The zero Shared is ready for use. Safe for concurrent use.
type Shared struct {
	sending  sync.Mutex // held by who sends a pack; who waits for it finds its own sent
	building sync.Mutex // held by who fills one
	filling  *batch     // guarded by building
}

// batch is a pack of several roots.
type batch struct {
	w     *pack.Writer
	scope content.Scope
	sent  bool      // guarded by sending, as are
	at    time.Time // when it was there, by the store's clock,
	err   error     // and what became of it
}

// fold has once fold a root into a pack that is shared. A root that fails leaves nothing
// there, and where the pack fails each of its roots is folded anew, into its own.
func (s *Shared) fold(ctx context.Context, cfg Config, once func(Config) (Base, Stats, error)) (Base, Stats, error) {
	at, now, stats, err := s.fill(cfg, once)
	if err == nil {
		err = s.send(ctx, cfg, at)
	}
	if err == nil || ctx.Err() != nil {
		stats.Since = at.at
		return now, stats, err
	}
	cfg.Log.Debug("a root gets packs of its own, as it can't share one", "why", err)
	return once(cfg)
}

func (s *Shared) fill(cfg Config, once func(Config) (Base, Stats, error)) (*batch, Base, Stats, error) {
	s.building.Lock()
	defer s.building.Unlock()
	b := s.filling
	if b == nil || b.scope != cfg.Scope || b.w.Size(0, 0) > cfg.PackSize/2 { // a full one is sent by those who wait for it
		id, err := pack.NewID(cfg.Scope, cfg.Now(), cfg.Random)
		if err != nil {
			return nil, Base{}, Stats{}, err
		}
		b = &batch{w: pack.NewWriter(id, nil), scope: cfg.Scope}
		s.filling = b
	}
	bytes, entries := b.w.Mark()
	cfg.into = b.w
	now, stats, err := once(cfg)
	if err != nil {
		b.w.Cut(bytes, entries)
	}
	return b, now, stats, err
}

// send sees to it that a pack is in the bucket.
func (s *Shared) send(ctx context.Context, cfg Config, b *batch) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if b.sent {
		return b.err
	}
	s.building.Lock()
	if s.filling == b {
		s.filling = nil
	}
	s.building.Unlock()
	if b.sent = true; b.w.Empty() {
		return nil
	}
	sealed, err := b.w.Seal(cfg.sign())
	if err == nil {
		b.at, err = pack.Store(ctx, cfg.Bucket, sealed)
	}
	if err != nil {
		b.err = fmt.Errorf("a pack of several roots: %w", err)
	}
	return b.err
}
