package instance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	numbers "math/rand/v2"
	"time"

	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// claimTries bounds how often a claim is tried whose record others replace meanwhile.
const claimTries = 3

// record returns the record of the instance; there is none where the body is zero, and r is what is written over.
func (i *hosted) record(ctx context.Context) (r *catalog.Record, body catalog.Instance, err error) {
	got, err := i.hub.cfg.Registry.Instance(ctx, i.name)
	switch {
	case errors.Is(err, content.ErrNotFound) && got.Tombstone:
		return &got, body, nil
	case errors.Is(err, content.ErrNotFound):
		return nil, body, nil
	case err != nil:
		return nil, body, err
	}
	body, err = catalog.DecodeInstance(i.hub.cfg.Codec, got.Body)
	return &got, body, err
}

// isMine reports whether a record names this node by what the entry has claimed.
func (i *hosted) isMine(e entry, body catalog.Instance) bool {
	return body.State == catalog.Attached && body.Holder == i.hub.cfg.Self && body.Incarnation == e.Incarnation && e.Incarnation != 0
}

// claim has the record name this node.
func (i *hosted) claim(ctx context.Context) error {
	for try := 1; ; try++ {
		err := i.claimOnce(ctx)
		if !errors.Is(err, content.ErrConflict) || errors.Is(err, content.Held) || errors.Is(err, content.Differs) || try == claimTries {
			return err
		}
	}
}

func (i *hosted) claimOnce(ctx context.Context) error {
	base, body, err := i.record(ctx)
	if err != nil {
		return err
	}
	e, _ := i.now()
	switch there := body.ID != (catalog.InstanceID{}); {
	case there && i.isMine(e, body):
		return nil
	case there:
		err = i.hub.mayClaim(*base, body, terms.Request{Spec: e.Spec, Takeover: e.Takeover})
	default:
		rand.Read(body.ID[:])
	}
	if err != nil {
		return err
	}
	if !hasData(body) {
		body.From = e.Spec.From
	}
	if body.Spec, err = e.Spec.Encode(); err != nil {
		return err
	}
	body.Epoch, body.Incarnation, body.Holder, body.State = body.Epoch+1, max(1, numbers.Uint64()), i.hub.cfg.Self, catalog.Attached
	err = i.change(func(e *entry) error {
		e.ID, e.Epoch, e.Incarnation, e.Saved, e.Root = body.ID, body.Epoch, body.Incarnation, body.SavedAt(), rootOf(i.hub.cfg.Codec, body)
		return nil
	})
	if err != nil {
		return err
	}
	return i.commit(ctx, base, body)
}

// hasData reports whether an instance is more than what it begins as.
func hasData(body catalog.Instance) bool {
	return body.Head != nil || !body.Away.IsHole() || body.Disk != content.VolumeID{}
}

// mayClaim fails for an instance that can't be had, or not so.
func (h *Hub) mayClaim(r catalog.Record, body catalog.Instance, req terms.Request) error {
	if hasData(body) && req.From != "" && body.From != req.From {
		return fmt.Errorf("%w: it was provisioned from %q first, not from %q; choose another name, or obliterate it", content.Differs, body.From, req.From)
	}
	was, err := terms.Decode(body.Spec)
	if err == nil {
		err = mayMove(body, was.Target, req.Target)
	}
	if err != nil || body.State == catalog.Released || req.Takeover {
		return err
	}
	saved := "never"
	if t := body.SavedAt(); !t.IsZero() {
		saved = t.UTC().Format(time.RFC3339)
	}
	return fmt.Errorf("%w: %s has it since %s, and what it has was put away last: %s; deprovision it there, or --takeover goes on with what was put away, and what that node has stays there",
		content.Held, h.cfg.Who(body.Holder), r.SignedAt.UTC().Format(time.RFC3339), saved)
}

// commit writes the record in place of base; ErrConflict where another has come there.
func (i *hosted) commit(ctx context.Context, base *catalog.Record, body catalog.Instance) error {
	b, err := body.Encode(i.hub.cfg.Codec)
	if err != nil {
		return err
	}
	e, _ := i.now()
	_, err = i.hub.cfg.Registry.Commit(ctx, i.name, base, e.Spec.Scope(i.hub.cfg.Farm).Farm(), b)
	return err
}

// errOld says that a record is older than what this node has claimed: who was asked has not heard of that yet.
var errOld = fmt.Errorf("%w: its record, as far as it is known now, is of before this node has it", content.ErrUnavailable)

// own returns the record, which names this node; ErrFenced where it names another.
func (i *hosted) own(ctx context.Context) (*catalog.Record, catalog.Instance, error) {
	base, body, err := i.record(ctx)
	if err != nil {
		return nil, body, err
	}
	switch e, _ := i.now(); {
	case base == nil && e.Incarnation != 0: // one that was obliterated has the record of that
		return nil, body, errOld
	case body.ID == catalog.InstanceID{}:
		return nil, body, fmt.Errorf("%w: it was obliterated", content.ErrFenced)
	case body.ID == e.ID && body.Epoch < e.Epoch:
		return nil, body, errOld
	case !i.isMine(e, body):
		return nil, body, fmt.Errorf("%w: %s has it by now, with epoch %d, and this node had epoch %d", content.ErrFenced, i.hub.cfg.Who(body.Holder), body.Epoch, e.Epoch)
	}
	return base, body, nil
}

// release has the record name nobody, if it names this node; one that has nothing goes.
func (i *hosted) release(ctx context.Context) error {
	if e, _ := i.now(); e.Incarnation == 0 { // it was never claimed
		return nil
	}
	base, body, err := i.own(ctx)
	if errors.Is(err, content.ErrFenced) || errors.Is(err, errOld) { // or the claim has failed
		return nil
	}
	if err != nil {
		return err
	}
	if e, _ := i.now(); !hasData(body) || e.Disk != (content.VolumeID{}) && e.Disk == body.Disk {
		return i.hub.cfg.Registry.Delete(ctx, *base)
	}
	body.State = catalog.Released
	return i.commit(ctx, base, body)
}

// forget deletes the record, and what else is at the origin.
func (i *hosted) forget(ctx context.Context, e entry) error {
	base, body, err := i.record(ctx)
	if err != nil || body.ID == (catalog.InstanceID{}) {
		return err
	}
	lost := body.Holder == i.hub.cfg.Self && e.Incarnation == 0 // it names this node, which has nothing of it
	if body.State == catalog.Attached && !i.isMine(e, body) && !lost {
		return fmt.Errorf("%w: %s has it", content.ErrFenced, i.hub.cfg.Who(body.Holder))
	}
	if e.ID = body.ID; body.Disk != (content.VolumeID{}) {
		e.Disk = body.Disk
	}
	if e.Spec, err = terms.Decode(body.Spec); err == nil {
		err = i.runtime(e).remove(ctx, e, true)
	}
	if err != nil && e.Spec.Target != "" && body.Away.IsHole() { // nothing was ever put away there: it may not be anything
		i.hub.cfg.Log.Warn("what may have been begun at the target of an instance stays there", "name", i.name, "err", err)
		err = nil
	}
	if err != nil {
		return err
	}
	return i.hub.cfg.Registry.Delete(ctx, *base)
}

// rootOf is the tree that an instance has put away; zero for none.
func rootOf(codec *content.Codec, body catalog.Instance) content.CID {
	if body.Head == nil {
		return content.CID{}
	}
	b, err := body.Head.Root.Encode(codec)
	if err != nil {
		return content.CID{}
	}
	return b.CID()
}

// mayObliterate fails for a name whose instance another node runs.
func (h *Hub) mayObliterate(r catalog.Record) error {
	body, err := catalog.DecodeInstance(h.cfg.Codec, r.Body)
	if err == nil && body.State == catalog.Attached && body.Holder != h.cfg.Self {
		err = fmt.Errorf("%w: %s has it: obliterate it there, or provision it here with --takeover before", content.Held, h.cfg.Who(body.Holder))
	}
	return err
}
