// Package index keeps which volumes a node has, over a restart too: each is a folder, with
// all that the node knows of it beside its journal.
package index

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Entry is what this node knows of a volume: the file volume.json in the volume's own
// folder, which is named after its ID. A second text in it is the CRC32C of all before.
type Entry struct {
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
	// Empty says that what is here is in the bucket too: the volume was released, or, by Leaving, may be. Adopted says that it
	// was made of what a record names, and not served since: all of it is here once Tried has a stamp.
	Empty   bool `json:"empty,omitempty"`
	Leaving bool `json:"leaving,omitempty"`
	Adopted bool `json:"adopted,omitempty"`
	// Taken says why the volume is this node's no more; empty while it is. What is here
	// and not in the bucket is an orphan then, and Orphan says that it has a record.
	Taken  string `json:"taken,omitempty"`
	Orphan bool   `json:"orphan,omitempty"`
	Reader bool   `json:"reader,omitempty"` // it is read here as the bucket had it by that record, whoever has it
	// Removing says that it is being removed: that its name is free then is this node's doing.
	Removing bool `json:"removing,omitempty"`
	// Waiting are its snapshots that are not durable yet, by their numbers, and Ancestors
	// wrote what the folder began with.
	Waiting   []Waiting          `json:"waiting,omitempty"`
	Ancestors []content.VolumeID `json:"ancestors,omitempty"`
	// Began is the entry that the journal ended with when it was opened first since a holder
	// had no more than that.
	Began *uint64 `json:"began,omitempty"`
	Blind *Blind  `json:"blind,omitempty"` // nil: never opened without the record
}

// ViewsDir holds the folders of snapshots that are looked at; a start removes them.
const ViewsDir = "views"

const (
	entryMagic = "grange-volume/3"
	FileName   = "volume.json"
	// A folder gets its own name when what is in it is whole, and another one before
	// that is taken away; a start goes on with what it finds under these.
	halfMade, halfGone = ".new", ".gone"
	// volumesMax bounds the volumes of a node; each costs a folder, an index and an open file or two.
	volumesMax = 4096
)

// Folder is what its folder is called.
func (e Entry) Folder() string { return e.ID.String() }

// Right is what the entry says of this node's right to the volume, before it is attached.
func (e Entry) Right(self trust.PublicKey, process uint64) right.State {
	s := right.State{Self: self, Process: process, Tried: e.Tried, Last: e.last(), Here: e.Committed && !e.Empty && !e.Leaving && e.Taken == ""}
	switch {
	case e.Adopted && e.State == catalog.Attached && e.Holder != self:
		s.From = e.Volume
	case e.Committed && e.Holder == self && e.Taken == "":
		s.Stamp = right.StampOf(e.Volume)
	}
	return s
}

// Widest is the head by which most members send what the volume begins as: that of what
// it was made from, while it has the same root. It must have one.
func (e Entry) Widest(c *content.Codec) pack.Head {
	if made, err := pack.DecodeHead(c, e.Made); err == nil && made.Root == e.Head.Root {
		return made
	}
	return *e.Head
}

// last is the latest epoch that the entry knows of.
func (e Entry) last() uint64 {
	last := e.Epoch
	for _, t := range e.Tried {
		last = max(last, t.Epoch)
	}
	return last
}

// Index is the durable list of this node's volumes. Safe for concurrent use, but for
// changes of one volume, which come one at a time; nobody waits for another's.
type Index struct {
	dir     string
	codec   *content.Codec
	writing *turns.Turns[content.VolumeID] // one file of a volume at a time
	mu      sync.RWMutex                   // guards what follows; never held while anything waits
	entries map[string]Entry               // by name
	aside   map[string]Entry               // by folder, of those that have stepped aside
	Broken  map[string]error               // folders that can't be read, and why
	at      func(Step)                     // told of each, for tests
}

// Step is a place at which a crash leaves something behind.
type Step string

// The steps.
const (
	StepNoted Step = "noted" // the file of a volume says something new
	StepNamed Step = "named" // a folder that was made has its name
	StepAside Step = "aside" // the folder of an orphan has stepped aside
	StepGone  Step = "gone"  // a folder has another name, under which it is removed
)

// Expected reports whether somebody waits for a volume in this folder: one was
// attached when the node ended.
func Expected(dir string) bool {
	x, err := Load(dir, func(string) {})
	if err != nil || len(x.Broken) > 0 {
		return true // New will say
	}
	return slices.ContainsFunc(x.Sorted(), func(e Entry) bool { return e.Attached })
}

// Load reads what all folders say; at is told of each Step. One that can't be read is kept as broken: it is
// a volume, whatever else it is.
func Load(dir string, at func(step string)) (*Index, error) {
	x := &Index{dir: dir, codec: content.NewCodec(), writing: turns.New[content.VolumeID](1), entries: map[string]Entry{}, aside: map[string]Entry{}, Broken: map[string]error{}, at: func(s Step) { at("index " + string(s)) }}
	found, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, f := range found {
		if !f.IsDir() || half(f.Name()) != "" || f.Name() == orphansDir || f.Name() == ViewsDir {
			continue
		}
		e, err := x.read(filepath.Join(dir, f.Name()), f.Name())
		if other, taken := x.entries[e.Name]; err == nil && taken {
			err = fmt.Errorf("%w: folder %s is a volume %q too; move one of them away", content.ErrConflict, other.Folder(), e.Name)
		}
		if err != nil {
			x.Broken[f.Name()] = err
			continue
		}
		x.entries[e.Name] = e
	}
	aside, _ := os.ReadDir(filepath.Join(dir, orphansDir)) // there may be none
	for _, f := range aside {
		id, _, _ := strings.Cut(f.Name(), "-")
		folder := filepath.Join(dir, orphansDir, f.Name())
		if e, err := x.read(folder, id); err == nil {
			x.aside[folder] = e
		}
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

// read reads what a folder says that is to be called after its volume.
func (x *Index) read(folder, called string) (e Entry, err error) {
	b, err := os.ReadFile(filepath.Join(folder, FileName))
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
	if err == nil && e.Folder() != called {
		err = fmt.Errorf("it is of the volume in folder %s, of which this is a copy: move it away", e.Folder())
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%s: %w: %w; the volume's data beside it are left as they are: restore the file from a backup, or move the folder away",
			filepath.Join(folder, FileName), content.ErrCorrupt, err)
	}
	return e, nil
}

func entrySum(b []byte) string {
	return fmt.Sprintf("\"%08x\"\n", journal.Sum(b))
}

// Sweep completes what a crash has cut short. A volume that was being made is one, for its
// record may be written; if it is not, that is done as for those made while the origin is
// away. One that was being removed is gone.
func (x *Index) Sweep() error {
	found, err := os.ReadDir(x.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	errs := []error{os.RemoveAll(filepath.Join(x.dir, ViewsDir))}
	for _, f := range found {
		path := filepath.Join(x.dir, f.Name())
		switch half(f.Name()) {
		case halfMade:
			errs = append(errs, x.complete(path))
		case halfGone:
			errs = append(errs, finish(path))
		default: // a crash leaves what it was writing
			left, _ := filepath.Glob(filepath.Join(path, durable.TempPrefix+"*"))
			for _, file := range left {
				errs = append(errs, os.Remove(file))
			}
		}
	}
	return errors.Join(errs...)
}

// complete makes a volume of a folder that has all of one but its name.
func (x *Index) complete(path string) error {
	e, err := x.read(path, strings.TrimSuffix(filepath.Base(path), halfMade))
	old, here := x.Get(e.Name)
	switch {
	case err == nil && !here && (!e.Adopted || len(e.Tried) > 0):
		if err = x.Free(e.Name); err == nil {
			return x.Add(e)
		}
	case err == nil && here && e.Adopted && len(e.Tried) > 0 && old.Committed && e.last() > old.last():
		return x.Replace(e)
	}
	return x.discard(path)
}

// discard removes a folder that was being made, which has nothing that was written.
func (x *Index) discard(path string) error {
	written, err := HasJournal(path)
	if e, bad := x.read(path, strings.TrimSuffix(filepath.Base(path), halfMade)); err == nil && written && (bad != nil || !e.Adopted) {
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

func (x *Index) Path(e Entry) string { return filepath.Join(x.dir, e.Folder()) }

func (x *Index) Get(name string) (Entry, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.entries[name]
	return e, ok
}

// Has reports whether there is a folder of the volume of that ID, readable or not.
func (x *Index) Has(id content.VolumeID) bool {
	_, err := os.Stat(filepath.Join(x.dir, id.String()))
	return err == nil
}

// Sorted returns the entries by name.
func (x *Index) Sorted() []Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Entry, 0, len(x.entries))
	for _, name := range slices.Sorted(maps.Keys(x.entries)) { // names alone are moved by that
		out = append(out, x.entries[name])
	}
	return out
}

// FreeName is a name that no volume here has, the given one if it is free.
func (x *Index) FreeName(name string) string {
	for n, free := 2, name; ; n, free = n+1, fmt.Sprintf("%s-%d", name, n) {
		if _, taken := x.Get(free); !taken {
			return free
		}
	}
}

// Free fails when a volume can't have a name, or there are too many.
func (x *Index) Free(name string) error {
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
func (x *Index) keep(e Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries[e.Name] = e
}

// Change stores a change of a volume durably before it returns.
func (x *Index) Change(name string, change func(*Entry)) (Entry, error) {
	e, ok := x.Get(name)
	if !ok {
		return e, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
	}
	done, _ := x.writing.Take(context.Background(), e.ID, 1) // it fails with the context alone
	defer done()
	if e, ok = x.Get(name); !ok {
		return e, fmt.Errorf("%w on this node any more", content.ErrNotFound)
	}
	change(&e)
	return e, x.put(e)
}

// put stores a volume as it is from now on.
func (x *Index) put(e Entry) error {
	if err := x.write(x.Path(e), e); err != nil {
		return err
	}
	x.keep(e)
	return nil
}

func (x *Index) write(folder string, e Entry) error {
	return cmp.Or(x.place(folder, e), spaceError(durable.SyncDir(folder)))
}

// place is write, which a loss of power may undo before the folder is synced.
func (x *Index) place(folder string, e Entry) error {
	e.Magic = entryMagic
	var b []byte
	var err error
	if e.Record, err = e.Volume.Encode(x.codec); err == nil {
		b, err = json.MarshalIndent(e, "", " ")
	}
	if err == nil {
		b = append(b, '\n')
		err = durable.Place(filepath.Join(folder, FileName), append(b, entrySum(b)...), 0o600)
	}
	if err == nil {
		x.at(StepNoted)
	}
	return spaceError(err)
}

// Prepare makes the folder of a new volume, under another name than its own: it costs
// nothing yet to give it up.
func (x *Index) Prepare(e Entry) error {
	path := x.HalfMade(e)
	err := durable.MkdirAll(x.dir, 0o700)
	if _, there := os.Lstat(path); err == nil && there == nil {
		err = x.discard(path)
	}
	if err != nil {
		return spaceError(err)
	}
	if err = volume.Create(path, e.ID); err == nil {
		err = x.write(path, e)
	}
	if err != nil {
		return errors.Join(spaceError(err), os.RemoveAll(path))
	}
	return nil
}

// HalfMade is the folder of a volume until Add.
func (x *Index) HalfMade(e Entry) string { return x.Path(e) + halfMade }

// Rewrite stores what is known by now of a volume that was prepared.
func (x *Index) Rewrite(e Entry) error { return x.write(x.HalfMade(e), e) }

// Restate is Rewrite of what a start finds out by itself, where a loss of power undoes it
// before the volume is opened.
func (x *Index) Restate(e Entry) error { return x.place(x.HalfMade(e), e) }

// GiveUp removes what Prepare has made.
func (x *Index) GiveUp(e Entry) error { return os.RemoveAll(x.HalfMade(e)) }

// Add gives a folder that was prepared its name; from then on the volume exists.
func (x *Index) Add(e Entry) error {
	if err := os.Rename(x.HalfMade(e), x.Path(e)); err != nil {
		return spaceError(err)
	}
	x.at(StepNamed)
	x.keep(e)
	return spaceError(durable.SyncDir(x.dir))
}

// Replace is Add of a volume of which this node has had a folder, which steps aside.
func (x *Index) Replace(e Entry) error {
	if old, here := x.Get(e.Name); here {
		if err := x.SetAside(old); err != nil {
			return spaceError(err)
		}
	}
	return x.Add(e)
}

// Remove takes a volume away, with its folder.
func (x *Index) Remove(e Entry) error {
	path := x.Path(e)
	return x.removeAs(path+halfGone, path, func() { x.forget(e.Name) })
}

// removeAs removes a folder under another name, by which a start goes on with that: it has lost
// its own for good before anything in it goes. forget is called once it has.
func (x *Index) removeAs(gone, folder string, forget func()) error {
	err := os.Rename(folder, gone)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(folder))
	}
	if err != nil {
		return err
	}
	x.at(StepGone)
	forget()
	return os.RemoveAll(gone)
}

// forget takes a volume away, not its folder.
func (x *Index) forget(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.entries, name)
}

// Rename gives a volume another name, which must be free.
func (x *Index) Rename(old string, e Entry) error {
	if err := x.Free(e.Name); err != nil && !errors.Is(err, content.ErrNoSpace) {
		return err
	}
	err := x.put(e)
	if err == nil {
		x.forget(old)
	}
	return err
}

// orphansDir holds the folders of orphans whose volume is here again, and nothing else.
const orphansDir = "orphans"

// HasJournal reports whether anything was written in a volume's folder.
func HasJournal(folder string) (bool, error) {
	found, err := os.ReadDir(folder)
	return slices.ContainsFunc(found, func(f os.DirEntry) bool { return strings.HasSuffix(f.Name(), journal.Suffix) }), err
}

// SetAside takes the folder of a volume out of the way that is another's, or back: it is
// removed if all of it is in the bucket, else it gets another name, for its orphan.
func (x *Index) SetAside(e Entry) error {
	dirty, err := HasJournal(x.Path(e))
	if err != nil {
		return err
	}
	if e.Empty || !dirty {
		return x.Remove(e)
	}
	aside := x.Aside(e.ID, e.Epoch)
	err = durable.MkdirAll(filepath.Dir(aside), 0o700)
	if err == nil {
		err = os.Rename(x.Path(e), aside)
	}
	if err != nil {
		return err
	}
	x.at(StepAside)
	x.forget(e.Name)
	x.mu.Lock()
	x.aside[aside] = e
	x.mu.Unlock()
	return errors.Join(durable.SyncDir(x.dir), durable.SyncDir(filepath.Dir(aside)))
}

// Orphans are what is left here of volumes that are another's, with the folders that have it.
func (x *Index) Orphans() map[string]Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := maps.Clone(x.aside)
	for _, e := range x.entries {
		if e.Taken != "" && !e.Empty {
			out[x.Path(e)] = e
		}
	}
	return out
}

// Named notes that an orphan has a record.
func (x *Index) Named(folder string, e Entry) error {
	if folder == x.Path(e) {
		_, err := x.Change(e.Name, func(now *Entry) { now.Orphan = now.Taken != "" && now.Epoch == e.Epoch })
		return err
	}
	e.Orphan = true
	err := x.write(folder, e)
	if err == nil {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.aside[folder] = e
	}
	return err
}

// Drop removes the folder of an orphan that has stepped aside, by a name under which a start
// removes it.
func (x *Index) Drop(folder string) error {
	gone := filepath.Join(x.dir, ViewsDir, filepath.Base(folder))
	if err := os.MkdirAll(filepath.Dir(gone), 0o700); err != nil {
		return err
	}
	return x.removeAs(gone, folder, func() { x.mu.Lock(); delete(x.aside, folder); x.mu.Unlock() })
}

func (x *Index) Aside(id content.VolumeID, epoch uint64) string {
	return filepath.Join(x.dir, orphansDir, fmt.Sprintf("%s-%d", id, epoch))
}

// spaceError says what a full disk means to who makes something.
func spaceError(err error) error {
	if durable.IsFull(err) {
		return fmt.Errorf("%w: the disk of the data folder is full: %w", content.ErrNoSpace, err)
	}
	return err
}

// Orphan returns the folder that has the data of an orphan of this node, and what it says.
func (x *Index) Orphan(s catalog.Snapshot) (dir string, e Entry, err error) {
	if e, ok := x.Get(s.Volume); ok && (e.Taken != "" || e.Orphan) && e.ID == s.ID && e.Epoch == s.Epoch {
		return x.Path(e), e, nil
	}
	dir = x.Aside(s.ID, s.Epoch)
	e, err = x.read(dir, s.ID.String())
	return dir, e, err
}

// Reached notes that a snapshot is waited for no more.
func (x *Index) Reached(name string, w Waiting) error {
	_, err := x.Change(name, func(e *Entry) {
		e.Waiting = slices.DeleteFunc(slices.Clone(e.Waiting), func(other Waiting) bool { return other == w })
	})
	return err
}

// FreeShare is which share of the disk of a folder is free; all, where nobody can say.
func FreeShare(dir string) float64 {
	free, total, err := cache.DiskFree(dir)
	if err != nil || total == 0 {
		return 1
	}
	return float64(free) / float64(total)
}
