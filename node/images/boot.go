package images

import (
	"context"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// BootList is the list of what an image's boots read first.
type BootList struct {
	Chunks int       `json:"chunks"`
	Stored uint64    `json:"stored" doc:"bytes that these take at the origin"`
	Runs   int       `json:"runs" doc:"boots that it was made of"`
	Made   time.Time `json:"made_at"`
	// Use is this node's alone.
	Use boots.Use `json:"use" doc:"what became of it on this node"`
}

// bootList shows a list; nil for none.
func (im *Images) bootList(root content.CID, list *catalog.Boot) *BootList {
	if list == nil {
		return nil
	}
	return &BootList{list.Chunks(), list.Stored, list.Runs, time.Unix(list.Made, 0), im.cfg.Boots.Use(root, list.Made)}
}

// bringBoot fetches what the image's boots want, if that is known.
func (im *Images) bringBoot(ctx context.Context, m *fetch.Image, k records.Known) error {
	body, err := catalog.DecodeImage(im.cfg.Codec, k.Body)
	if err != nil || body.Boot == nil {
		return err
	}
	return bring(ctx, m, body.Boot)
}

// bring fetches a list side by side. What can't be had is left to who reads it.
func bring(ctx context.Context, m *fetch.Image, list *catalog.Boot) error {
	return boots.Bring(ctx, m, false, slices.Collect(list.All()), new(tally.Counters))
}
