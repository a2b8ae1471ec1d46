package volumes

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// owner is the volume as those know it who have its flushes held.
func (a *attached) owner() holders.Owner {
	return holders.Owner{
		Name: a.Name, Revise: a.revise, Outbid: a.outbid, Owned: a.owned,
		Origin: func(ctx context.Context, upTo content.Position) error { return a.tails().Persist(ctx, upTo) },
		Outdated: func(ctx context.Context) {
			_ = a.happen(ctx, right.Outdated{Why: fmt.Sprintf("its holders have what this disk has not, so that it was rolled back, or cloned; `grange volume attach %s --takeover` goes on with what they have", a.Name())})
		}, // which says the same
		Began: func(end uint64) uint64 { return a.v.index.Began(a.Name(), end) }, Joined: func() error { return a.v.index.Joined(a.Name()) },
		Record: func() (catalog.Volume, bool) { _, body, st := a.record(); return body, st.IsSure() },
	}
}

// outbid takes an epoch later than the given one.
func (a *attached) outbid(ctx context.Context, epoch uint64) (uint64, error) {
	err := a.happen(ctx, right.Outbid{Epoch: epoch})
	_, body, st := a.record()
	if !st.IsSure() {
		return 0, err
	}
	return body.Epoch, err
}

// owned reads the record: ErrFenced when it is not this node's any more.
func (a *attached) owned(ctx context.Context) error {
	_, body, err := a.v.records().SureVolume(ctx, a.Name())
	if err != nil {
		return err
	}
	if _, _, st := a.record(); st.IsMine(body) {
		return nil
	}
	_ = a.happen(ctx, right.Due{}) // which finds the same, and stops it
	return fmt.Errorf("%w: epoch %d has it", content.ErrFenced, body.Epoch)
}

// shut closes the volume, and has nobody hold anything more of it.
func (a *attached) shut() error {
	a.over.Store(true)
	a.guard.Close()
	a.line.Close()
	return a.vol.Close()
}

// vouched asks those who hold what the volume flushes whether another has come to them.
func (a *attached) vouched(ctx context.Context) right.Event {
	gaps := a.v.pulse.Gaps()
	if a.guard == nil || !a.guard.Vouched(ctx) {
		return right.Unvouched{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gaps = gaps
	return right.Vouched{}
}

// inheritedFolder has what is being taken over, in the folder that is being made.
const inheritedFolder = "/inherited"

// inherit takes over what the holders have of a volume, into the folder that is being made.
func (a *attached) inherit(ctx context.Context, body catalog.Volume, st right.State, e index.Entry) ([]journal.AdoptedSegment, error) {
	in, err := a.v.cfg.Holders.Inherit(ctx, e.Name, body, st.Process, a.v.index.HalfMade(e)+inheritedFolder)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.heir = nil; err == nil && in.Epoch > 0 {
		a.heir = &in
		a.right, _ = right.Step(a.right, right.Outbid{Epoch: in.Epoch - 1})
	}
	return in.Segments, err
}
