package garbage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// silentMax is how long a run may say nothing of itself before another member takes over from it, and heartbeat how
	// often it does.
	silentMax = 10 * time.Minute
	heartbeat = time.Minute
)

// turn is the right to collect: the record of the origin's collection, as this run has written it last. Whoever has written
// it since has the right now.
type turn struct {
	catalog *catalog.Catalog
	clock   *dated
	codec   *content.Codec
	record  catalog.Record
	body    catalog.Collection
}

// takeTurn takes the next epoch.
func takeTurn(ctx context.Context, cfg Config, clock *dated) (*turn, error) {
	c, err := catalog.New(catalog.Config{Bucket: clock, Verifier: cfg.Verifier, Signer: cfg.Signer, Now: clock.now})
	if err != nil {
		return nil, err
	}
	t := &turn{catalog: c, clock: clock, codec: content.NewCodec()}
	var base *catalog.Record
	switch current, err := c.Get(ctx, content.KindCollection, catalog.CollectionName); {
	case errors.Is(err, content.ErrNotFound):
	case errors.Is(err, content.ErrForbidden) || errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrUnknown):
		if base, err = t.unbelieved(ctx); err != nil {
			return nil, err
		}
	default:
		base = &current
		if t.body, err = catalog.DecodeCollection(t.codec, current.Body); err != nil {
			return nil, err
		}
	}
	self, now := cfg.Signer.Key.Public(), clock.now()
	seen := time.UnixMilli(t.body.Seen)
	if ago := now.Sub(seen); t.body.Epoch > 0 && t.body.Ended == 0 && t.body.Holder != self && ago < silentMax && ago > -slipMax { // else it is of a clock that was wrong
		return nil, fmt.Errorf("%w: %s collects the garbage of this origin, and was at it %s ago", content.Running, t.body.Holder, now.Sub(seen).Round(time.Second))
	}
	t.body = catalog.Collection{Epoch: t.body.Epoch + 1, Holder: self, Began: now.UnixMilli(), Seen: now.UnixMilli(), Report: t.body.Report}
	return t, t.write(ctx, base)
}

// unbelieved is a record that no member has written who may: it gives way, and whoever has written it is overtaken.
func (t *turn) unbelieved(ctx context.Context) (*catalog.Record, error) {
	key := string(content.KeyRecords) + string(content.KindCollection) + "/" + catalog.CollectionName
	for info, err := range t.clock.List(ctx, key, "") {
		if err != nil {
			return nil, err
		}
		if info.Key == key {
			b, _, err := bucket.ReadAll(ctx, t.clock, key, content.RecordSizeMax)
			if err == nil {
				_, err = trust.Peek(b)
			}
			if errors.Is(err, content.ErrUnknown) || errors.Is(err, content.ErrUnavailable) {
				return nil, err
			}
			return &catalog.Record{Envelope: trust.Envelope{Kind: content.KindCollection, Name: catalog.CollectionName}, ETag: info.ETag}, nil
		}
	}
	return nil, nil
}

func (t *turn) write(ctx context.Context, base *catalog.Record) error {
	b, err := t.body.Encode(t.codec)
	if err != nil {
		return err
	}
	r, err := t.catalog.Commit(ctx, catalog.Change{Kind: content.KindCollection, Name: catalog.CollectionName, Body: b, Base: base})
	if errors.Is(err, content.ErrConflict) || errors.Is(err, content.ErrExists) {
		return fmt.Errorf("%w: another member collects the garbage of this origin by now: %w", content.ErrFenced, err)
	}
	if err == nil {
		t.record = r
	}
	return err
}

// hold makes sure that the right is still this run's: it is asked before anything is condemned, or deleted.
func (t *turn) hold(ctx context.Context) error {
	now, err := t.catalog.Get(ctx, content.KindCollection, catalog.CollectionName)
	if err != nil {
		return err
	}
	if now.Commit != t.record.Commit {
		return fmt.Errorf("%w: another run has begun since, of epoch above %d", content.ErrFenced, t.body.Epoch)
	}
	if err := t.clock.doubted(); err != nil {
		return err
	}
	at := t.clock.now()
	if at.Sub(time.UnixMilli(t.body.Seen)) < heartbeat {
		return nil
	}
	t.body.Seen = at.UnixMilli()
	return t.write(ctx, &t.record)
}

// end says what a run has done, and that it has ended.
func (t *turn) end(ctx context.Context, r Report, failed error) error {
	s := Summary{Totals: r.Totals, Broken: len(r.Broken)}
	s.Epoch = t.body.Epoch
	if failed != nil {
		s.Error = content.Line(failed)
		s.Error = s.Error[:min(len(s.Error), 512)]
	}
	var err error
	if t.body.Report, err = json.Marshal(s); err != nil {
		return err
	}
	t.body.Seen = t.clock.now().UnixMilli()
	t.body.Ended = t.body.Seen
	return t.write(ctx, &t.record)
}
