package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// An orphan is what a node had of a volume that another took, and the bucket had not: the
// snapshot NAME@eN-orphan. Its data are the volume's folder, as it was; when the volume
// itself comes back to this node, the folder steps aside.

// orphansDir holds the folders of orphans whose volume is here again, and nothing else.
const orphansDir = "orphans"

// orphanName is what the record of an entry's orphan is called.
func orphanName(e entry) string {
	return content.Ref{Kind: content.KindSnapshot, Name: e.Name, Seq: e.Epoch, Orphan: true}.RecordName()
}

// keepOrphans writes the records of orphans that have none, as far as the origin answers.
func (v *Volumes) keepOrphans(ctx context.Context) {
	for _, e := range v.index.sorted() {
		if e.Taken == "" || e.Orphan || e.Empty || ctx.Err() != nil {
			continue
		}
		if err := v.keepOrphan(ctx, e); err != nil {
			v.cfg.Log.Warn("what was taken from this node, and is on its disk alone, is no snapshot yet", "volume", e.Name, "err", err)
		}
	}
}

// keepOrphan makes a snapshot of what is left here of a volume that was taken away.
func (v *Volumes) keepOrphan(ctx context.Context, e entry) error {
	dirty, err := hasJournal(v.index.path(e))
	if err == nil && dirty {
		var body []byte
		body, err = catalog.Snapshot{
			Volume: e.Name, Orphan: true, ID: e.ID, Size: e.Size, Epoch: e.Epoch, Head: e.Head, Lineage: e.Lineage, Base: e.Base, Segments: e.Segments,
			At: e.Through(), Parent: e.From, Holder: v.cfg.Self, Created: v.cfg.Now(), FsUsed: e.FsUsed,
		}.Encode(v.codec)
		if err == nil {
			_, err = v.cfg.Registry.Commit(ctx, content.KindSnapshot, orphanName(e), nil, body)
		}
	}
	if err != nil && !errors.Is(err, content.ErrExists) { // it has one from before a crash
		return err
	}
	_, err = v.index.change(e.Name, func(e *entry) { e.Orphan = true })
	return err
}

// hasJournal reports whether anything was written in a volume's folder.
func hasJournal(folder string) (bool, error) {
	found, err := os.ReadDir(folder)
	return slices.ContainsFunc(found, func(f os.DirEntry) bool { return strings.HasSuffix(f.Name(), ".seg") }), err
}

// setAside takes the folder of a volume out of the way that comes back to this node: it is
// removed if all of it is in the bucket, else it gets another name, for its orphan.
func (x *index) setAside(e entry) error {
	dirty, err := hasJournal(x.path(e))
	if err != nil {
		return err
	}
	if e.Empty || !dirty {
		return x.remove(e)
	}
	aside := x.aside(e.ID, e.Epoch)
	err = durable.MkdirAll(filepath.Dir(aside), 0o700)
	if err == nil {
		err = os.Rename(x.path(e), aside)
	}
	if err != nil {
		return err
	}
	x.forget(e)
	return errors.Join(durable.SyncDir(x.dir), durable.SyncDir(filepath.Dir(aside)))
}

func (x *index) aside(id content.VolumeID, epoch uint64) string {
	return filepath.Join(x.dir, orphansDir, fmt.Sprintf("%s-%d", id, epoch))
}

// orphanDir is the folder that has the data of an orphan of this node.
func (v *Volumes) orphanDir(s catalog.Snapshot) (string, error) {
	if e, ok := v.index.get(s.Volume); ok && e.Taken != "" && e.ID == s.ID && e.Epoch == s.Epoch {
		return v.index.path(e), nil
	}
	dir := v.index.aside(s.ID, s.Epoch)
	_, err := os.Stat(dir)
	return dir, err
}
