package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// blocked is a registry that does not answer for one volume: each call for it says so, and
// waits until it is let go, or given up.
type blocked struct {
	*store
	name string
	come chan string
	free chan struct{}
}

func (b *blocked) wait(ctx context.Context, what, name string) error {
	if name != b.name {
		return nil
	}
	select {
	case b.come <- what:
	case <-b.free:
	}
	select {
	case <-b.free:
		return nil
	case <-ctx.Done():
		return content.ErrUnavailable
	}
}

func (b *blocked) Volume(ctx context.Context, name string) (catalog.Record, error) {
	if err := b.wait(ctx, "read", name); err != nil {
		return catalog.Record{}, err
	}
	return b.store.Volume(ctx, name)
}

func (b *blocked) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	return b.Volume(ctx, name)
}

func (b *blocked) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	if err := b.wait(ctx, "commit", ch.Name); err != nil {
		return catalog.Record{}, err
	}
	return b.store.Commit(ctx, ch)
}

// TestTakeoverDisturbsNoOther: of 50 volumes one is taken over, and that is stuck at each of
// its steps, at the node that takes it, and where it was. The other 49 write and flush, and
// of some snapshots are made, they are detached and attached, and new ones come and go
// meanwhile, at either node: none of that waits for the takeover, which goes on after it.
func TestTakeoverDisturbsNoOther(t *testing.T) {
	const others = 49
	p := newPair(t)
	at := map[*world]*blocked{}
	for _, w := range []*world{p.a, p.b} {
		at[w] = &blocked{store: p.store, name: "taken", come: make(chan string), free: make(chan struct{})}
	}
	p.a.put(t, "taken", Spec{Size: testSize})
	shadow := make([]byte, testSize)
	p.a.fill(t, "taken", shadow, 5, 1)
	where := func(n int) *world { return []*world{p.a, p.b}[n%2] }
	for n := range others {
		where(n).put(t, fmt.Sprint("v", n), Spec{Size: testSize})
	}
	p.a.cfg.Registry, p.b.cfg.Registry = at[p.a], at[p.b]
	went := 0
	goOn := func(step string) {
		t.Helper()
		went++
		var all sync.WaitGroup
		for n := range others {
			all.Go(func() {
				if err := where(n).live(t.Context(), fmt.Sprint("v", n), byte(went), n < 6); err != nil {
					t.Errorf("%s: volume %d: %v", step, n, err)
				}
			})
		}
		all.Wait()
	}
	taken := make(chan error, 1)
	go func() {
		_, _, err := p.b.Put(context.Background(), "taken", Spec{Takeover: true, Transport: terms.NBD})
		taken <- err
	}()
	for step := range 3 { // who asks for it, and for its record; and takes the next epoch
		what := <-at[p.b].come
		goOn(fmt.Sprintf("step %d, a %s", step, what))
		if step < 2 {
			at[p.b].free <- struct{}{}
		}
	}
	looked := make(chan struct{})
	go func() { // who had it hears of that, and looks, and can't see
		defer close(looked)
		p.a.lookAtOwned(context.Background(), right.NewLooks(-1, p.a.now))
	}()
	hears := make(chan error, 1)
	go func() { hears <- p.a.device("taken").happen(context.Background(), right.Due{}) }()
	<-at[p.a].come
	goOn("who had it looks")
	close(at[p.b].free)
	if err := <-taken; err != nil {
		t.Error(err)
	}
	goOn("who had it does not know yet")
	close(at[p.a].free)
	<-looked
	if err := <-hears; err != nil && !errors.Is(err, content.ErrFenced) {
		t.Error(err)
	}
	p.a.giveUpLost(t.Context())
	goOn("who had it gives it up")
}

// live does with a volume what its guest does, and its owner.
func (w *world) live(ctx context.Context, name string, b byte, owned bool) error {
	want, got := bytes.Repeat([]byte{b}, 4096), make([]byte, 4096)
	write := func() error {
		front := w.device(name).front
		return errors.Join(front.WriteAt(ctx, want, 0, false), front.Flush(ctx), front.ReadAt(ctx, got, 0))
	}
	if err := write(); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("it has other bytes, or not: %w", err)
	}
	if !owned {
		return nil
	}
	if _, err := w.Snapshot(ctx, name, SnapshotSpec{}); err != nil {
		return err
	}
	if _, err := w.Detach(ctx, name, false); err != nil {
		return err
	}
	if _, _, err := w.Put(ctx, name, Spec{}); err != nil {
		return err
	}
	other := fmt.Sprintf("%s-%d", name, b)
	if _, _, err := w.Put(ctx, other, Spec{Size: testSize, Transport: terms.NBD}); err != nil {
		return err
	}
	return errors.Join(w.Remove(ctx, other, RemoveSpec{}), write())
}
