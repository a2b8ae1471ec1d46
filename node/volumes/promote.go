package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/build"
)

// Promote publishes what a reference stands for as an image. Of a volume that is attached
// here all goes into chunks first. What the image's scope may refer to is not sent again:
// for one of the volume's own farm that is everything.
func (v *Volumes) Promote(ctx context.Context, ref content.Ref, to PromoteSpec, progress Progress) error {
	if err := v.promote(ctx, ref, to, progress); err != nil {
		return fmt.Errorf("promote %s to image %q: %w", ref, to.Image, err)
	}
	return nil
}

func (v *Volumes) promote(ctx context.Context, ref content.Ref, to PromoteSpec, progress Progress) (err error) {
	if err := content.KindImage.CheckName(to.Image); err != nil {
		return err
	}
	if v.cfg.Publish == nil {
		return fmt.Errorf("%w: this node publishes no images", content.ErrForbidden)
	}
	if to.Scope.IsZero() {
		to.Scope = content.Mesh()
	}
	if a := v.device(ref.Name); ref.Kind == content.KindVolume && !ref.Folded && a != nil && a.folds != nil {
		if err := a.folds.Run(ctx, fold.Chunks); err != nil {
			return err
		}
	}
	m, err := v.moment(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	store, err := v.readable()
	if err != nil {
		return err
	}
	body, err := m.Image(ctx, build.Config{Bucket: store, Scope: to.Scope, Signer: v.cfg.Signer, Now: v.cfg.Now, Log: v.cfg.Log}, progress)
	if err == nil {
		body.Source = ref.String()
		err = v.cfg.Publish(ctx, to.Image, body, to.Replace)
	}
	return err
}
