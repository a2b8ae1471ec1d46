package volumes

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
)

// TestSnapshotsBesideWritesAndFolds: while writers write and folds of each kind run without
// pause, snapshots are made, and compared; then the node is gone. Each is of one moment: of
// a writer that counts up, block by block, it has what that had acknowledged before, nothing
// that it began after, and no later block without the earlier ones. Durable ones read elsewhere
// as they did here, and each other one is; the rest say so. The changes between two are what a comparison byte by
// byte finds.
func TestSnapshotsBesideWritesAndFolds(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	a := p.a.device("disk")
	const writers, unit = 3, 4096
	const blocks = testSize / unit / writers
	var acked, begun [writers]atomic.Int64
	stop := make(chan struct{})
	var work sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			b := make([]byte, unit)
			for n := int64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for i := range b {
					b[i] = byte(n >> (8 * (i % 3)))
				}
				begun[w].Store(n)
				if err := a.vol.WriteAt(t.Context(), b, (int64(w)*blocks+n%blocks)*unit, false); err != nil {
					t.Error(err)
					return
				}
				acked[w].Store(n)
			}
		})
	}
	work.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := a.folds.Run(t.Context(), []fold.Want{fold.Safe, fold.Safe, fold.Chunks}[n%3]); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const snapshots = 12
	here := make([][]byte, snapshots)
	for i := range here {
		var before, after [writers]int64
		for w := range writers {
			before[w] = acked[w].Load()
		}
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: []string{"", terms.Durable}[i%2]}); err != nil {
			t.Fatal(err)
		}
		for w := range writers {
			after[w] = begun[w].Load()
		}
		here[i] = p.a.exported(t, fmt.Sprintf("snapshot:disk@%d", i+1))
		for w := range writers {
			counts(t, here[i][w*blocks*unit:(w+1)*blocks*unit], before[w], after[w])
		}
		if i > 0 {
			p.compared(t, p.a, here[i-1], here[i], i)
		}
	}
	close(stop)
	work.Wait()
	last, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{})
	if err != nil {
		t.Fatal(err)
	}
	p.a.stop(t) // and nobody asks it again
	durable := 0
	for i, want := range here {
		view, err := p.b.FindSnapshot(t.Context(), fmt.Sprintf("disk@%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		if !view.Durable {
			continue
		}
		if durable++; !bytes.Equal(p.b.exported(t, "snapshot:"+view.ID), want) {
			t.Errorf("%s has other bytes elsewhere", view.ID)
		}
		if prior, err := p.b.FindSnapshot(t.Context(), fmt.Sprintf("disk@%d", i)); i > 0 && err == nil && prior.Durable {
			p.compared(t, p.b, here[i-1], want, i)
		}
	}
	t.Logf("%d of %d snapshots are durable; the writers wrote %d blocks", durable, snapshots, acked[0].Load()+acked[1].Load()+acked[2].Load())
	if durable < snapshots/2 {
		t.Error("hardly any is durable")
	}
	if view, err := p.b.FindSnapshot(t.Context(), last.ID); err != nil || view.Durable != last.Durable {
		t.Errorf("%+v, %v", view, err)
	}
}

// counts fails unless blocks are what a writer has written in turn, up to a number of those
// that it may have reached.
func counts(t *testing.T, disk []byte, least, most int64) {
	t.Helper()
	const unit = 4096
	blocks := int64(len(disk) / unit)
	number := func(i int64) int64 {
		b := disk[i*unit:]
		return int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
	}
	newest := int64(0)
	for i := range blocks {
		newest = max(newest, number(i))
	}
	if newest < least || newest > most {
		t.Errorf("it has block %d of a writer, who was between %d and %d", newest, least, most)
	}
	for n := max(1, newest-blocks+1); n <= newest; n++ {
		if got := number(n % blocks); got != n {
			t.Errorf("it has %d of a writer, and where %d is to be %d", newest, n, got)
		}
	}
}

// compared fails unless the changes from a snapshot to the next are where these differ.
func (p *pair) compared(t *testing.T, w *world, one, two []byte, from int) {
	t.Helper()
	const unit = 4096
	told := make([]bool, testSize/unit)
	for x, err := range w.Changes(t.Context(), "disk", uint64(from), uint64(from+1)) {
		if err != nil {
			t.Errorf("changes from %d: %v", from, err)
			return
		}
		for at := x.Offset; at < x.Offset+x.Length; at += unit {
			told[at/unit] = true
		}
	}
	for i := range told {
		if same := bytes.Equal(one[i*unit:(i+1)*unit], two[i*unit:(i+1)*unit]); same == told[i] {
			t.Errorf("from %d, block %d: alike %t, told as changed %t", from, i, same, told[i])
			return
		}
	}
}

// late is a registry of which a snapshot's record comes only after do.
type late struct {
	*store
	do func()
}

func (l *late) Snapshot(ctx context.Context, name string) (catalog.Record, error) {
	r, err := l.store.Snapshot(ctx, name)
	if do := l.do; do != nil {
		l.do = nil
		do()
	}
	return r, err
}

// TestSnapshotThatBecomesDurable while it is being opened, or forked, has what it had.
func TestSnapshotThatBecomesDurable(t *testing.T) {
	p := newPair(t)
	home := &late{store: p.store}
	p.a.cfg.Registry = home
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	for i, use := range []func(){
		func() {
			if !bytes.Equal(p.a.exported(t, "snapshot:disk@1"), want) {
				t.Error("it has other bytes")
			}
		},
		func() {
			p.a.put(t, "fork", Spec{From: refOf(t, "snapshot:disk@2")})
			p.a.is(t, "fork", want)
		},
	} {
		p.a.fill(t, "disk", want, 4, uint64(i))
		if view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil || view.Durable {
			t.Fatalf("%+v, %v", view, err)
		}
		home.do = func() {
			a := p.a.device("disk")
			a.vol.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 512), 0, false)
			if err := a.folds.Run(t.Context(), fold.Chunks); err != nil {
				t.Error(err)
			}
		}
		use()
		copy(want, bytes.Repeat([]byte{9}, 512))
	}
}
