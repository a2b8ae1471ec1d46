package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

// entry is what this node knows of a volume: the file volume.json in the volume's own
// folder, which is named after its ID. A second text in it is the CRC32C of all before.
type entry struct {
	Magic string `json:"magic"`
	Name  string `json:"name"`
	// Volume is the record as it was last known, or as it is going to be written; and
	// Record is that encoded.
	catalog.Volume `json:"-"`
	Record         []byte `json:"record"`
	// Tried are stamps that the record may have by now.
	Tried []right.Stamp `json:"tried,omitempty"`
	// Made is the encoded head of what it was made from: more members have that than the
	// volume's own, while it is the same root.
	Made      []byte `json:"made,omitempty"`
	Transport string `json:"transport"`
	// Disk is N of the /dev/ublkbN that the volume had last.
	Disk    *int      `json:"disk,omitempty"`
	Created time.Time `json:"created"`
	// Committed says that the record is at the origin.
	Committed bool `json:"committed"`
	// Attached says that the volume is to be served.
	Attached bool `json:"attached"`
	// Empty says that what is here is in the bucket too: the volume was released.
	Empty bool `json:"empty,omitempty"`
	// Taken says why the volume is this node's no more; empty while it is. What is here
	// and not in the bucket is an orphan then, and Orphan says that it has a record.
	Taken  string `json:"taken,omitempty"`
	Orphan bool   `json:"orphan,omitempty"`
	// Waiting are its snapshots that are not durable yet, by their numbers, and Ancestors
	// wrote what the folder began with.
	Waiting   []waiting          `json:"waiting,omitempty"`
	Ancestors []content.VolumeID `json:"ancestors,omitempty"`

	inherited []volume.AdoptedSegment // what a new folder begins with
	forked    func()                  // gives back what was kept of the parent until then
}

const (
	entryMagic = "grange-volume/3"
	entryName  = "volume.json"
	// A folder gets its own name when what is in it is whole, and another one before
	// that is taken away; a start goes on with what it finds under these.
	halfMade, halfGone = ".new", ".gone"
	// volumesMax bounds the volumes of a node; each costs a folder, an index and
	// an open file or two.
	volumesMax = 4096
)

func (e entry) folder() string { return e.ID.String() }

// right is what the entry says of this node's right to the volume, before it is attached.
func (e entry) right(self trust.PublicKey, process uint64) right.State {
	s := right.State{Self: self, Process: process, Tried: e.Tried, Here: e.Committed && !e.Empty && e.Taken == ""}
	if e.Committed && e.Holder == self {
		s.Stamp = right.StampOf(e.Volume)
	}
	return s
}

// index is the durable list of this node's volumes. Safe for concurrent use, but for
// changes of one volume, which come one at a time; nobody waits for another's.
type index struct {
	dir     string
	codec   *content.Codec
	writing *turns.Turns[content.VolumeID] // one file of a volume at a time
	mu      sync.RWMutex                   // guards what follows; never held while anything waits
	entries map[string]entry               // by name
	broken  map[string]error               // folders that can't be read, and why
}

// Expected reports whether somebody waits for a volume in this folder: one was
// attached when the node ended.
func Expected(dir string) bool {
	x, err := loadIndex(dir)
	if err != nil || len(x.broken) > 0 {
		return true // New will say
	}
	return slices.ContainsFunc(x.sorted(), func(e entry) bool { return e.Attached })
}

// loadIndex reads what all folders say. One that can't be read is kept as broken: it is
// a volume, whatever else it is.
func loadIndex(dir string) (*index, error) {
	x := &index{dir: dir, codec: content.NewCodec(), writing: turns.New[content.VolumeID](1), entries: map[string]entry{}, broken: map[string]error{}}
	found, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, f := range found {
		if !f.IsDir() || half(f.Name()) != "" || f.Name() == orphansDir || f.Name() == viewsDir {
			continue
		}
		e, err := x.readEntry(filepath.Join(dir, f.Name()))
		if other, taken := x.entries[e.Name]; err == nil && taken {
			err = fmt.Errorf("%w: folder %s is a volume %q too; move one of them away", content.ErrConflict, other.folder(), e.Name)
		}
		if err != nil {
			x.broken[f.Name()] = err
			continue
		}
		x.entries[e.Name] = e
	}
	return x, nil
}

// half is which suffix the folder of a volume has that is being made or removed, "" for
// any other: people name copies as they like.
func half(name string) string {
	for _, suffix := range []string{halfMade, halfGone} {
		if id, ok := strings.CutSuffix(name, suffix); ok && len(id) == len(content.VolumeID{}.String()) && strings.Trim(id, "0123456789abcdef") == "" {
			return suffix
		}
	}
	return ""
}

func (x *index) readEntry(folder string) (e entry, err error) {
	b, err := os.ReadFile(filepath.Join(folder, entryName))
	body := b[:max(0, len(b)-len(entrySum(nil)))]
	if err == nil && string(b[len(body):]) != entrySum(body) {
		err = errors.New("its checksum does not match")
	}
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err == nil && (e.Magic != entryMagic || content.CheckName(e.Name) != nil) {
		err = errors.New("it does not say which volume this is")
	}
	if err == nil {
		e.Volume, err = catalog.DecodeVolume(x.codec, e.Record)
	}
	switch {
	case err == nil && e.folder() != strings.TrimSuffix(filepath.Base(folder), halfMade):
		err = fmt.Errorf("it is of the volume in folder %s, of which this is a copy: move it away", e.folder())
	}
	if err != nil {
		return entry{}, fmt.Errorf("%s: %w: %w; the volume's data beside it are left as they are: restore the file from a backup, or move the folder away",
			filepath.Join(folder, entryName), content.ErrCorrupt, err)
	}
	return e, nil
}

func entrySum(b []byte) string {
	return fmt.Sprintf("\"%08x\"\n", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// sweep completes what a crash has cut short. A volume that was being made is one, for its
// record may be written; if it is not, that is done as for those made while the origin is
// away. One that was being removed is gone.
func (x *index) sweep() error {
	found, err := os.ReadDir(x.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	errs := []error{os.RemoveAll(filepath.Join(x.dir, viewsDir))}
	for _, f := range found {
		path := filepath.Join(x.dir, f.Name())
		switch half(f.Name()) {
		case halfMade:
			errs = append(errs, x.complete(path))
		case halfGone:
			errs = append(errs, finish(path))
		}
	}
	return errors.Join(errs...)
}

// complete makes a volume of a folder that has all of one but its name.
func (x *index) complete(path string) error {
	e, err := x.readEntry(path)
	if old, here := x.get(e.Name); err == nil && here && old.ID == e.ID && e.Empty {
		return x.replace(e)
	}
	if err == nil {
		err = x.free(e.Name)
	}
	if err != nil {
		return discard(path)
	}
	return x.add(e)
}

// discard removes a folder that was being made, which has nothing that was written.
func discard(path string) error {
	written, err := hasJournal(path)
	if err == nil && written {
		err = fmt.Errorf("%s: %w: a volume was written to in it; move it away", path, content.ErrConflict)
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// finish removes a folder that was being removed, unless the volume is there all the same.
func finish(path string) error {
	if _, err := os.Lstat(strings.TrimSuffix(path, halfGone)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: its volume is there too; move it away", path, cmp.Or(err, content.ErrConflict))
	}
	return os.RemoveAll(path)
}

func (x *index) path(e entry) string { return filepath.Join(x.dir, e.folder()) }

func (x *index) get(name string) (entry, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.entries[name]
	return e, ok
}

// has reports whether there is a folder of the volume of that ID, readable or not.
func (x *index) has(id content.VolumeID) bool {
	_, err := os.Stat(filepath.Join(x.dir, id.String()))
	return err == nil
}

// sorted returns the entries by name.
func (x *index) sorted() []entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Values(x.entries), func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
}

// free fails when a volume can't have a name, or there are too many.
func (x *index) free(name string) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if _, taken := x.entries[name]; taken {
		return fmt.Errorf("volume %q: %w: this node has it already", name, content.ErrConflict)
	}
	if len(x.entries) >= volumesMax {
		return fmt.Errorf("volume %q: %w: this node has %d volumes, the limit", name, content.ErrNoSpace, volumesMax)
	}
	return nil
}

// keep notes an entry in memory.
func (x *index) keep(e entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries[e.Name] = e
}

// change stores a change of a volume durably before it returns.
func (x *index) change(name string, change func(*entry)) (entry, error) {
	e, ok := x.get(name)
	if !ok {
		return e, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
	}
	done, _ := x.writing.Take(context.Background(), e.ID, 1) // it fails with the context alone
	defer done()
	if e, ok = x.get(name); !ok {
		return e, fmt.Errorf("volume %q: %w on this node any more", name, content.ErrNotFound)
	}
	change(&e)
	return e, x.put(e)
}

// put stores a volume as it is from now on.
func (x *index) put(e entry) error {
	if err := x.writeEntry(x.path(e), e); err != nil {
		return err
	}
	x.keep(e)
	return nil
}

func (x *index) writeEntry(folder string, e entry) error {
	e.Magic = entryMagic
	var b []byte
	var err error
	if e.Record, err = e.Volume.Encode(x.codec); err == nil {
		b, err = json.MarshalIndent(e, "", " ")
	}
	if err == nil {
		b = append(b, '\n')
		err = durable.WriteFile(filepath.Join(folder, entryName), append(b, entrySum(b)...), 0o600)
	}
	return spaceError(err)
}

// prepare makes the folder of a new volume, under another name than its own: it costs
// nothing yet to give it up.
func (x *index) prepare(e entry) error {
	path := x.path(e) + halfMade
	err := durable.MkdirAll(x.dir, 0o700)
	if err == nil {
		err = volume.Create(path, e.ID)
	}
	if err == nil && len(e.inherited) > 0 {
		err = volume.Adopt(path, e.ID, e.inherited)
	}
	if err == nil {
		err = x.writeEntry(path, e)
	}
	if err != nil {
		return errors.Join(spaceError(err), os.RemoveAll(path))
	}
	return nil
}

// giveUp removes what prepare has made.
func (x *index) giveUp(e entry) error { return os.RemoveAll(x.path(e) + halfMade) }

// add gives a folder that was prepared its name; from then on the volume exists.
func (x *index) add(e entry) error {
	path := x.path(e)
	err := os.Rename(path+halfMade, path)
	if err == nil {
		err = durable.SyncDir(x.dir)
	}
	if err != nil {
		return errors.Join(spaceError(err), x.giveUp(e))
	}
	x.keep(e)
	return nil
}

// replace is add of a volume of which this node has had a folder, which steps aside.
func (x *index) replace(e entry) error {
	if old, here := x.get(e.Name); here {
		if err := x.setAside(old); err != nil {
			return err
		}
	}
	return x.add(e)
}

// remove takes a volume away, with its folder.
func (x *index) remove(e entry) error {
	path := x.path(e)
	err := os.Rename(path, path+halfGone)
	if err == nil {
		err = durable.SyncDir(x.dir)
	}
	if err != nil {
		return err
	}
	x.forget(e)
	return os.RemoveAll(path + halfGone)
}

// forget takes a volume away, not its folder.
func (x *index) forget(e entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.entries, e.Name)
}

// rename gives a volume another name, which must be free.
func (x *index) rename(old string, e entry) error {
	if err := x.free(e.Name); err != nil && !errors.Is(err, content.ErrNoSpace) {
		return err
	}
	if err := x.put(e); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.entries, old)
	return nil
}
