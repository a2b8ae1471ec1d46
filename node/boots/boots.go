// Package boots has disks that were never here start as if they were: it records what guests read first of each root and
// of each volume, and has what such a list names brought in from the moment at which a disk is opened, before anybody asks for it.
//
// Lists come from three places, the first that has one counts: the volume's own record, of the last time that it was in
// use; the record of the image that its root is; and that of an ancestor. A list is a hint: it costs at most its bound, and never
// a right byte.
package boots

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// lookEvery is how often it is looked whether a boot has ended.
	lookEvery = time.Second
	// replaysMax is how many lists are brought in at once: a host that starts a hundred disks has them wait for each other
	// rather than all of them for the uplink.
	replaysMax = 8
	// judgedAfter is how many boots with a list it takes to tell that it is worth nothing, and worthLeast the share of it, in
	// percent, that they have to read.
	judgedAfter, worthLeast = 3, 25
)

// Disk is a disk that guests are about to read.
type Disk struct {
	// Lineage are the roots before its own, the nearest first.
	Lineage []content.CID
	// Hot are the chunks that were read first the last time, nil for not known.
	Hot *catalog.Boot
	// Again is of one that a start of the node opens, over which guests go on: what they read then is not what they boot by.
	Again bool
}

// Config is what Boots are built from.
type Config struct {
	// Dir is where what was recorded is kept; a loss of it is none.
	Dir string
	// Image reports whether an image is published that is this root, and returns its list, nil for none.
	Image func(root content.CID) (list *catalog.Boot, ok bool)
	Codec *content.Codec
	Now   func() time.Time
	Log   *slog.Logger
}

// Boots are those of a node. Use: New, Run. Safe for concurrent use.
type Boots struct {
	cfg     Config
	turns   *turns.Turns[struct{}]
	flights singleflight.Group // of lists
	book    *book
	came    tally.Counters // raw bytes of lists
	chunk   *prometheus.CounterVec

	ctx  context.Context // of what is done beside
	stop context.CancelFunc

	mu      sync.Mutex // guards what follows
	running sync.WaitGroup
}

// recording is a disk that was opened.
type recording struct {
	disk  Disk
	root  content.CID
	trace *touch.Trace
	list  *catalog.Boot // that was brought in; nil for none
}

// New reads what was recorded. Where that can't be, there is nothing.
func New(cfg Config) *Boots {
	book, err := openBook(cfg.Dir, cfg.Codec)
	if err != nil {
		cfg.Log.Warn("what boots on this node have read can't be read, or kept", "folder", cfg.Dir, "err", err)
	}
	b := &Boots{
		cfg: cfg, turns: turns.New[struct{}](replaysMax), book: book,
		chunk: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "grange", Subsystem: "boot", Name: "listed_chunks_total", Help: "Chunks of boot lists that guests had read by the end of a boot, and that they had not."}, []string{"read"}),
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// Run ends what is done beside, when ctx ends: nothing begins after it.
func (b *Boots) Run(ctx context.Context) error {
	<-ctx.Done()
	b.mu.Lock()
	b.stop()
	b.mu.Unlock()
	b.running.Wait()
	return nil
}

// start does something beside. Whoever opens disks may come before Run.
func (b *Boots) start(do func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() == nil {
		b.running.Go(func() { do(b.ctx) })
	}
}

// Ahead is told of an image that a disk is about to be made of: what its list names is brought in while that is made. It does
// not wait.
func (b *Boots) Ahead(m *fetch.Image) { b.replay(m, b.list(m.ID(), Disk{})) }

// Opened is told of a disk that guests are about to read by m: what its list names is brought in from now on, and what they
// read first is recorded. It does not wait.
func (b *Boots) Opened(m *fetch.Image, d Disk) {
	r := &recording{disk: d, root: m.ID(), list: b.list(m.ID(), d)}
	if r.trace = touch.New(m.Root().Shape().Chunks, func() { b.start(func(ctx context.Context) { b.watch(ctx, r) }) }); !d.Again {
		m.Record(r.trace)
	}
	b.replay(m, r.list)
}

// list returns the best list that there is for a disk; nil where that is worth nothing, or none is known.
func (b *Boots) list(root content.CID, d Disk) *catalog.Boot {
	list := d.Hot
	for _, of := range append([]content.CID{root}, d.Lineage...) {
		if list == nil {
			list, _ = b.cfg.Image(of)
		}
	}
	if list == nil || !b.book.worth(root, list.Made) {
		return nil
	}
	return list
}

// replay has a list brought in beside; nil is none. Those who want the same one at once wait for the first.
func (b *Boots) replay(m *fetch.Image, list *catalog.Boot) {
	if list == nil {
		return
	}
	b.start(func(ctx context.Context) {
		over := m.Listed()
		defer func() { over() }()
		_, _, _ = b.flights.Do(fmt.Sprint(*list), func() (any, error) {
			begun := time.Now()
			over() // a guest is read ahead for while its list waits for others
			give, err := b.turns.Take(ctx, struct{}{}, 1)
			over = m.Listed()
			if err != nil {
				return nil, err
			}
			defer give()
			err = Bring(ctx, m, true, slices.Collect(list.All()), &b.came)
			b.cfg.Log.Debug("a boot list was brought in", "root", list.Root, "chunks", list.Chunks(), "took", time.Since(begun), "err", err)
			return nil, err
		})
	})
}

// watch waits for the end of a boot, and notes what it has read.
func (b *Boots) watch(ctx context.Context, r *recording) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	over, is := false, false
	for !over {
		select {
		case <-tick.C:
			over, is = r.trace.Over(time.Now())
		case <-ctx.Done():
			return
		}
	}
	r.trace.End()
	if !is {
		return
	}
	x := boot{trace: r.trace.Chunks(), listed: r.list.Chunks()}
	if r.list != nil {
		x.made = r.list.Made
	}
	for chunk := range r.list.All() {
		if r.trace.Has(chunk) {
			x.read++
		}
	}
	b.chunk.WithLabelValues("true").Add(float64(x.read))
	b.chunk.WithLabelValues("false").Add(float64(x.listed - x.read))
	if _, published := b.cfg.Image(r.root); !published {
		return // what it reads next time its own record says
	}
	if r.disk.Hot != nil {
		x.listed = 0 // that was the volume's alone: of the image's it tells nothing
	}
	b.note(r.root, x)
}

// Booted keeps what a boot of a root has read for which nothing was brought in.
func (b *Boots) Booted(root content.CID, trace []uint64) { b.note(root, boot{trace: trace}) }

// note keeps a boot that has just ended.
func (b *Boots) note(root content.CID, x boot) {
	x.at = b.cfg.Now().Unix()
	if err := b.book.note(root, x); err != nil {
		b.cfg.Log.Warn("what a boot has read is not on disk", "err", err)
	}
}
