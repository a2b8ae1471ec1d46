package holders

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

// slowLane takes its time for what is written.
type slowLane struct{ Lane }

func (l slowLane) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	if _, ok := m.(wire.Extend); ok {
		wait(ctx, 20*time.Millisecond)
	}
	return l.Lane.Ask(ctx, to, m)
}

// TestHoldersOutliveCompaction: what a volume overwrites is merged while its holders have
// not all of it yet, and nobody can write the record, whose origin is away: the holders
// stay, and each flush has them.
func TestHoldersOutliveCompaction(t *testing.T) {
	all := newNodes(t, 3)
	all[0].farm.Lane, all[0].farm.Log = slowLane{all[0].farm.Lane}, slog.New(slog.NewTextHandler(t.Output(), nil))
	r := &record{body: catalog.Volume{ID: theVolume, Size: 8 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:2"}}
	v, g := all[0].serve(t, created(t), r)
	defer func() {
		g.Close()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	data := bytes.Repeat([]byte{1}, 64<<10)
	if err := v.WriteAt(t.Context(), data, 0, true); err != nil { // it has holders by then
		t.Fatal(err)
	}
	before := r.get().Holders
	r.away(true)
	for round := range 40 { // 80 segments, most of them dead
		for i := range int64(32) {
			if err := v.WriteAt(t.Context(), data, i*64<<10, false); err != nil {
				t.Fatal(err)
			}
		}
		p, err := v.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v.Release(p)
		if round%4 == 3 {
			if err := v.Flush(t.Context()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	if now := r.get().Holders; len(now) != 2 || !slices.Equal(now, before) {
		t.Errorf("the holders are %v, and were %v", now, before)
	}
}

// away has nobody write the record.
func (r *record) away(is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = nil
	if is {
		r.lost = errors.Join(content.ErrUnavailable, errors.New("the origin is away"))
	}
}

// TestWhatTheBucketHasIsHeld: what was written, and never flushed, goes to the bucket before
// any holder has it: the next flush waits for nobody, and nothing more has to be written.
func TestWhatTheBucketHasIsHeld(t *testing.T) {
	all := newNodes(t, 2)
	r := &record{body: catalog.Volume{ID: theVolume, Size: 8 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:1"}}
	v, g := all[0].serve(t, created(t), r)
	defer func() {
		g.Close()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	data := bytes.Repeat([]byte{1}, 64<<10)
	if err := v.WriteAt(t.Context(), data, 0, true); err != nil { // it has holders by then
		t.Fatal(err)
	}
	if err := v.WriteAt(t.Context(), data, 64<<10, false); err != nil {
		t.Fatal(err)
	}
	p, err := v.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release(p)
	r.mu.Lock()
	r.body.Base = p
	r.mu.Unlock()
	if err := v.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}
