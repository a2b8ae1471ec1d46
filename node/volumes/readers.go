package volumes

import (
	"context"
	"errors"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/trust"
)

// read attaches a volume to be read beside its writer, as the bucket has it now; e is what is
// here under its name.
func (v *Volumes) read(ctx context.Context, e index.Entry, name, transport string) (created bool, err error) {
	d := v.device(name)
	q := readers.Ask{Name: name, Transport: transport, Old: e, Close: func() error { return v.close(ctx, name, false, nil) }}
	q.Served = d != nil && d.vol != nil && (transport == terms.Auto || (transport == terms.UBLK) == (d.disk != nil))
	from := readers.Source{Index: v.index, Records: v.records(), Bucket: v.bucket(), Made: v.madeFrom, Farm: v.cfg.Farm, Now: v.cfg.Now, At: v.cfg.At}
	if e, created, err = from.Attach(ctx, q); err == nil && created {
		err = v.reattach(ctx, e, Spec{Transport: transport})
	}
	return created, err
}

// leave ends the reading of a volume, of which nothing stays.
func (v *Volumes) leave(ctx context.Context, e index.Entry, force bool) error {
	err := v.close(ctx, e.Name, force, nil)
	if v.device(e.Name) == nil {
		err = errors.Join(err, v.index.Remove(e))
	}
	return err
}

// unread fails when other members read a volume.
func (v *Volumes) unread(ctx context.Context, name string) error {
	return readers.Unread(ctx, v.cfg.Holders.Live(), func(ctx context.Context, to trust.PublicKey) (who string) {
		if b, err := v.cfg.Call(ctx, to, readsMethod, []byte(name)); err == nil && string(b) == readsYes {
			who, _ = v.cfg.Holder(ctx, to)
		}
		return who
	})
}
