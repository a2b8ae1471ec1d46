// Package orphans gives names to what a node has of volumes that are another's by now, and the
// bucket has not: the snapshots NAME@eN-orphan. The data of one are the volume's folder, as it
// was; when the volume itself comes back to the node, the folder steps aside.
package orphans

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Keeper writes the records of orphans, and ends with those whose records were deleted. Not
// safe for concurrent use, but for Removed.
type Keeper struct {
	Index   *index.Index
	Records func() records.Records
	Self    trust.PublicKey
	Now     func() time.Time
	// Turns has one change of a volume at a time, by name. Journal says how a folder is
	// opened, Served is what has one open, nil if nothing has, and Close closes that, unless it is in use.
	Turns   *turns.Turns[string]
	Journal func(index.Entry) volume.Config
	Served  func(name string) *volume.Volume
	Close   func(ctx context.Context, name string) error
	Log     *slog.Logger

	looked map[string]time.Time // at the record, by folder
}

// Keep has records and folders be alike, as far as the origin answers.
func (k *Keeper) Keep(ctx context.Context) {
	for folder, e := range k.Index.Orphans() {
		if ctx.Err() != nil {
			return
		}
		do := k.keep
		if e.Orphan {
			do = k.drop
		}
		if err := do(ctx, folder, e); err != nil {
			k.Log.Warn("what was taken from this node, and is on its disk alone, is not what its snapshot says", "volume", e.Name, "epoch", e.Epoch, "err", err)
		}
	}
}

func (k *Keeper) keep(ctx context.Context, folder string, e index.Entry) error {
	dirty, err := index.HasJournal(folder)
	if err == nil && dirty {
		err = k.put(ctx, folder, e)
	}
	if err != nil {
		return err
	}
	return k.Index.Named(folder, e)
}

func (k *Keeper) put(ctx context.Context, folder string, e index.Entry) error {
	end, err := k.end(ctx, folder, e)
	if err != nil {
		return err
	}
	s := catalog.Snapshot{
		Volume: e.Name, Orphan: true, ID: e.ID, Size: e.Size, Epoch: e.Epoch, Folded: e.Folded,
		At: end, Parent: e.From, Holder: k.Self, Created: k.Now(), FsUsed: e.FsUsed,
	}
	if err = k.Records().PutSnapshot(ctx, nil, s); errors.Is(err, content.Gone) {
		k.Log.Error("a snapshot of what was taken from this node has its journal, and lacks some of what that is behind", "snapshot", s.Ref(), "err", err)
		err = nil
	}
	if !errors.Is(err, content.ErrExists) {
		return err
	}
	_, there, err := k.Records().Snapshot(ctx, s.Ref().RecordName())
	if err == nil && there.ID != s.ID { // else it has one from before a crash
		err = fmt.Errorf("%w: %s is of another volume that had this name: once that snapshot is removed, this one gets the name", content.ErrExists, s.Ref())
	}
	return err
}

// drop ends with an orphan whose record was deleted; that there is none says nothing.
func (k *Keeper) drop(ctx context.Context, folder string, e index.Entry) error {
	if k.Now().Sub(k.looked[folder]) < right.SaidFor {
		return nil
	}
	r, _, err := k.Records().Snapshot(ctx, catalog.Snapshot{Volume: e.Name, Orphan: true, Epoch: e.Epoch}.Ref().RecordName())
	if errors.Is(err, content.ErrNotFound) && records.Freed(r, e.Created) {
		return k.remove(ctx, folder, e)
	}
	if k.looked == nil {
		k.looked = map[string]time.Time{}
	}
	k.looked[folder] = k.Now()
	return nil
}

// Purge deletes the record of what is left here of a volume, if it has one. Its folder is the
// caller's to remove.
func (k *Keeper) Purge(ctx context.Context, e index.Entry) error {
	_, err := k.Records().RemoveSnapshot(ctx, catalog.Snapshot{Volume: e.Name, Orphan: true, Epoch: e.Epoch}.Ref().RecordName(), e.ID)
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}

// Removed ends with an orphan at once if it is one, whose record was deleted; else Keep does.
func (k *Keeper) Removed(ctx context.Context, s catalog.Snapshot) {
	for folder, e := range k.Index.Orphans() {
		if s.Orphan && e.ID == s.ID && e.Epoch == s.Epoch {
			if err := k.remove(ctx, folder, e); err != nil {
				k.Log.Warn("the data of a snapshot that was removed are on the disk still, and go later", "snapshot", s.Ref(), "err", err)
			}
		}
	}
}

// turnWait is how long one volume keeps the look at the others waiting.
const turnWait = time.Second

// turn is that of a volume of which something is left here. Who attaches it meanwhile has it,
// and is asked at the next look.
func (k *Keeper) turn(ctx context.Context, name string) (end func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	if end, err = k.Turns.Take(ctx, name, 1); err != nil {
		err = fmt.Errorf("%w: it is being attached or detached", content.ErrUnavailable)
	}
	return end, err
}

// remove removes a folder, unless somebody looks at it.
func (k *Keeper) remove(ctx context.Context, folder string, e index.Entry) error {
	end, err := k.turn(ctx, e.Name)
	if err != nil {
		return err
	}
	defer end()
	if folder != k.Index.Path(e) {
		return k.Index.Drop(folder)
	}
	now, _ := k.Index.Get(e.Name)
	if now.ID != e.ID || now.Epoch != e.Epoch || now.Taken == "" {
		return nil
	}
	if err := k.Close(ctx, e.Name); err != nil {
		return err
	}
	return k.Index.Remove(now)
}

// end is where the journal in a folder ends, which nobody writes any more.
func (k *Keeper) end(ctx context.Context, folder string, e index.Entry) (content.Position, error) {
	end, err := k.turn(ctx, e.Name)
	if err != nil {
		return content.Position{}, err
	}
	defer end()
	c := k.Journal(e)
	if vol := k.Served(e.Name); vol != nil && folder == c.Dir { // it is looked at
		return vol.End(), nil
	}
	c.Dir = folder
	return moment.End(c)
}
