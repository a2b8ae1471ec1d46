package fold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// chunksWithin is how long an Upload may take to bring all into one root, of which another
// node reads what it needs. What takes longer goes as segments, which that one reads whole.
const chunksWithin = 10 * time.Second

const (
	// restShare is how much longer a fold that nobody waits for rests than it works: so it
	// takes an eighth of the processors that it may use, and a guest's request seldom waits
	// until it lets go of one.
	restShare = 7
	// restWithin bounds for how long a fold rests, and with it what the bucket lacks of a
	// volume that is written to without pause.
	restWithin = time.Minute
)

// Paced is how what is written to a volume that is served moves to the bucket: one fold at
// a time, when it is due. Safe for concurrent use.
type Paced struct {
	*Fold
	vol  *volume.Volume
	turn chan struct{} // has one while a fold is under way
	asks atomic.Int32  // how many wait for one
	rest time.Time     // until when the one under way may rest

	mu    sync.Mutex // guards what follows
	clock Clock
	why   error // of the last fold, nil if it went well
	// giveUp ends the fold that is under way, nil where none is; began is what the journal
	// took when it began.
	giveUp context.CancelCauseFunc
	began  int64
}

// NewPaced is for a volume that was just opened, which is the Journal.
func NewPaced(vol *volume.Volume, cfg Config) *Paced {
	p := &Paced{vol: vol, turn: make(chan struct{}, 1)}
	cfg.Journal, cfg.Rest = vol, p.stand
	p.Fold = New(cfg)
	if len(cfg.Pending()) > 0 { // a crash may have kept the record, which has them, from saying so
		p.clock.wait = retryMin
	}
	return p
}

// Hold keeps folds from beginning, once the one that is under way has ended, until end is called.
func (p *Paced) Hold(ctx context.Context) (end func(), err error) {
	select {
	case p.turn <- struct{}{}:
		return func() { <-p.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("fold: %w: another is under way: %w", content.ErrUnavailable, context.Cause(ctx))
	}
}

// Tend is Run for nobody who waits: it leaves the processors to guests.
func (p *Paced) Tend(ctx context.Context) error { return p.run(ctx, Safe) }

// Run folds the volume, when no other fold of it is under way.
func (p *Paced) Run(ctx context.Context, want Want) error {
	p.asks.Add(1)
	defer p.asks.Add(-1)
	return p.run(ctx, want)
}

// stand is a Config.Rest.
func (p *Paced) stand(ctx context.Context, took time.Duration) {
	if p.asks.Load() == 0 && time.Now().Before(p.rest) {
		select {
		case <-time.After(restShare * took):
		case <-ctx.Done():
		}
	}
}

func (p *Paced) run(ctx context.Context, want Want) error {
	end, err := p.Hold(ctx)
	if err != nil {
		return err
	}
	defer end()
	p.rest = time.Now().Add(restWithin)
	begun, was := p.cfg.Now(), p.cfg.Record()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	if p.wantsRoom() {
		want = Chunks
	}
	p.mu.Lock()
	p.giveUp, p.began = giveUp, p.vol.Stats().Disk
	p.mu.Unlock()
	if err = p.answers(ctx); err == nil {
		err = p.Fold.Run(ctx, want)
	}
	if err == nil {
		err = p.dismiss(ctx, was)
	}
	if err != nil && p.behind() > 2*AfterBytes {
		p.Loosen()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.Folded(begun, p.cfg.Now(), err)
	p.why, p.giveUp = err, nil
	return err
}

// answers waits until the bucket answers where there is much to fold: what a fold begins with
// is kept, beside all that is written meanwhile.
func (p *Paced) answers(ctx context.Context) error {
	store, err := p.cfg.Bucket()
	if err != nil || p.behind() < AfterBytes {
		return err
	}
	o, err := store.Get(ctx, content.KeyMesh, bucket.Range{Length: 1})
	if err == nil {
		return o.Body.Close()
	}
	if errors.Is(err, content.ErrUnavailable) {
		return fmt.Errorf("fold: %w", err)
	}
	return nil
}

// GiveWay ends a fold that is under way where the bucket does not answer: it sends things
// again and again for minutes, and the journal keeps all that it began with beside all that
// is written meanwhile. It is called now and then.
func (p *Paced) GiveWay() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.giveUp == nil || p.vol.Stats().Disk < p.began+AfterBytes {
		return
	}
	if _, err := p.cfg.Bucket(); err != nil {
		p.giveUp(err)
	}
}

// dismiss has the record name no holders any more, once the bucket has all that was acknowledged by
// the time when flushes did not wait for them any more: was is from before it was brought there.
func (p *Paced) dismiss(ctx context.Context, was catalog.Volume) error {
	if k, _ := catalog.PolicyHolders(was.Policy); k > 0 || len(was.Holders) == 0 {
		return nil
	}
	return p.cfg.Revise(ctx, func(body *catalog.Volume) error { body.Dismiss(); return nil })
}

// Upload has all of the volume in the bucket, and if it can in one root.
func (p *Paced) Upload(ctx context.Context) error {
	brief, cancel := context.WithTimeout(ctx, chunksWithin)
	defer cancel()
	if err := p.Run(brief, Chunks); err == nil || errors.Is(err, content.ErrFenced) {
		return err
	}
	return p.Run(ctx, Safe)
}

// behind is how many bytes of the journal the record does not name, about.
func (p *Paced) behind() int64 {
	end := p.cfg.Record().Through()
	if p.vol.End().Seq <= end.Seq {
		return 0
	}
	total := max(p.vol.Stats().Open, 1)
	for _, s := range p.vol.Sealed() {
		if s.Ref.Through.Seq > end.Seq {
			total += s.Ref.Bytes
		}
	}
	return total
}

// wantsRoom reports whether the disk is full, and chunks would make room on it: what the bucket
// has as segments stays here beside them.
func (p *Paced) wantsRoom() bool {
	return p.vol.Stats().Full && p.vol.End().Seq > p.cfg.Record().Base.Seq
}

// IsDue reports whether the volume, whose record can be written, is to be folded now, at the
// pace of its node; or, where flushes wait for that, at once.
func (p *Paced) IsDue(pace *Pace, waits bool) bool {
	if len(p.turn) > 0 {
		return false
	}
	behind := p.behind()
	if p.wantsRoom() {
		behind = max(behind, AfterBytes)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	due := p.clock.Due(p.cfg.Record().ID, behind, now) && (p.clock.presses(behind) || pace.Take())
	return due || waits && now.Sub(p.clock.failed) >= retryMin
}

// Lag is how much the bucket lacks, about, and why the last fold failed.
func (p *Paced) Lag() (int64, error) {
	behind := p.behind()
	p.mu.Lock()
	defer p.mu.Unlock()
	return behind, p.why
}
