// Package orphans gives names to what a node has of volumes that are another's by now, and the
// bucket has not: the snapshots NAME@eN-orphan. The data of one are the volume's folder, as it
// was; when the volume itself comes back to the node, the folder steps aside.
package orphans

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Keeper writes the records of orphans.
type Keeper struct {
	Index   *index.Index
	Records records.Records
	Self    trust.PublicKey
	Now     func() time.Time
	// End is where the journal in a folder ends, which nobody writes any more.
	End func(folder string, e index.Entry) (content.Position, error)
	Log *slog.Logger
}

// Keep writes those that are missing, as far as the origin answers.
func (k Keeper) Keep(ctx context.Context) {
	for folder, e := range k.Index.Orphans() {
		if ctx.Err() != nil {
			return
		}
		if err := k.keep(ctx, folder, e); err != nil {
			k.Log.Warn("what was taken from this node, and is on its disk alone, is no snapshot yet", "volume", e.Name, "err", err)
		}
	}
}

func (k Keeper) keep(ctx context.Context, folder string, e index.Entry) error {
	dirty, err := index.HasJournal(folder)
	var end content.Position
	if err == nil && dirty {
		end, err = k.End(folder, e)
	}
	if err == nil && dirty {
		err = k.Records.PutSnapshot(ctx, nil, catalog.Snapshot{
			Volume: e.Name, Orphan: true, ID: e.ID, Size: e.Size, Epoch: e.Epoch, Head: e.Head, Lineage: e.Lineage, Base: e.Base, Segments: e.Segments,
			At: end, Parent: e.From, Holder: k.Self, Created: k.Now(), FsUsed: e.FsUsed,
		})
	}
	if err != nil && !errors.Is(err, content.ErrExists) { // it has one from before a crash
		return err
	}
	return k.Index.Named(folder, e)
}
