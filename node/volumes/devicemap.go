package volumes

import (
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
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// entry is what the device map keeps of a volume.
type entry struct {
	Name string   `json:"name"`
	ID   [16]byte `json:"id"`
	// Folder under the volumes' folder; it keeps its name when the volume gets
	// another one.
	Folder     string      `json:"folder"`
	Size       int64       `json:"size"`
	From       content.Ref `json:"from,omitzero"`
	Head       []byte      `json:"head,omitempty"` // encoded pack.Head of the root
	Transport  string      `json:"transport"`
	Durability string      `json:"durability"`
	// Disk is N of the /dev/ublkbN that the volume had last.
	Disk     *int      `json:"disk,omitempty"`
	ReadOnly bool      `json:"readonly,omitempty"`
	Epoch    uint64    `json:"epoch"`
	Created  time.Time `json:"created"`
	// Stage is how far the volume got.
	Stage stage `json:"stage"`
	// Committed says that the record is at the origin.
	Committed bool `json:"committed"`
	// Attached says that the volume is to be served.
	Attached bool `json:"attached"`
}

// stage says what a restart has to do about an entry.
type stage string

const (
	// creating: the folder may be missing or half made, the record absent.
	creating stage = "creating"
	// ready: the volume is whole.
	ready stage = "ready"
	// removing: the record may be gone already; the folder goes too.
	removing stage = "removing"
)

// deviceMap is the durable list of this node's volumes. Safe for concurrent use:
// who reads it does not wait for a change that is on its way to the disk.
type deviceMap struct {
	path    string
	writing sync.Mutex                       // one change at a time
	entries atomic.Pointer[map[string]entry] // replaced, never changed
}

const (
	deviceMapMagic = "grange-devices/1"
	// volumesMax bounds the volumes of a node; each costs a folder, an index and
	// an open file or two.
	volumesMax = 4096
)

type deviceMapFile struct {
	Magic   string  `json:"magic"`
	Volumes []entry `json:"volumes"`
}

// devicesFile is the device map in the volumes' folder.
const devicesFile = "devices.json"

// Expected reports whether somebody waits for a volume in this folder: one was
// attached when the node ended. A folder of volumes whose list is missing or damaged is
// ErrCorrupt.
func Expected(dir string) (bool, error) {
	m, err := loadDeviceMap(filepath.Join(dir, devicesFile))
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(m.sorted(), func(e entry) bool { return e.Attached }), nil
}

func loadDeviceMap(path string) (*deviceMap, error) {
	m, entries := &deviceMap{path: path}, map[string]entry{}
	m.entries.Store(&entries)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, noVolumes(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("device map: %w", err)
	}
	var f deviceMapFile
	if err := json.Unmarshal(b, &f); err != nil || f.Magic != deviceMapMagic {
		return nil, fmt.Errorf("device map %s: %w; the volumes' folders beside it are whole: restore the file from a backup", path, errors.Join(content.ErrCorrupt, err))
	}
	for _, e := range f.Volumes {
		entries[e.Name] = e
	}
	return m, nil
}

// noVolumes fails if there are volumes in a folder that has no device map.
func noVolumes(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("device map: %w", err)
	}
	for _, f := range files {
		if f.IsDir() && f.Name() != "lost+found" {
			return fmt.Errorf("device map: %w: %s is missing, and volumes lie beside it, such as %s; restore the file from the backup that they are of, or move them away",
				content.ErrCorrupt, filepath.Join(dir, devicesFile), f.Name())
		}
	}
	return nil
}

func (m *deviceMap) get(name string) (entry, bool) {
	e, ok := (*m.entries.Load())[name]
	return e, ok
}

// put stores an entry durably before it returns.
func (m *deviceMap) put(e entry) error {
	return m.change(func(entries map[string]entry) error {
		if _, had := entries[e.Name]; !had && len(entries) >= volumesMax {
			return fmt.Errorf("volume %q: %w: this node has %d volumes, the limit", e.Name, content.ErrNoSpace, volumesMax)
		}
		entries[e.Name] = e
		return nil
	})
}

// remove forgets an entry; an absent one is success.
func (m *deviceMap) remove(name string) error {
	return m.change(func(entries map[string]entry) error {
		delete(entries, name)
		return nil
	})
}

// rename gives an entry another name, which must be free, in one write.
func (m *deviceMap) rename(old string, e entry) error {
	return m.change(func(entries map[string]entry) error {
		if _, taken := entries[e.Name]; taken {
			return fmt.Errorf("volume %q: %w: this node has it already", e.Name, content.ErrConflict)
		}
		delete(entries, old)
		entries[e.Name] = e
		return nil
	})
}

// change stores what f makes of the entries; when that fails they are as before.
func (m *deviceMap) change(f func(map[string]entry) error) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	next := maps.Clone(*m.entries.Load())
	if err := f(next); err != nil {
		return err
	}
	if err := m.save(next); err != nil {
		return err
	}
	m.entries.Store(&next)
	return nil
}

func (m *deviceMap) sorted() []entry { return sorted(*m.entries.Load()) }

// sorted returns entries by name.
func sorted(entries map[string]entry) []entry {
	return slices.SortedFunc(maps.Values(entries), func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
}

func (m *deviceMap) save(entries map[string]entry) error {
	b, err := json.MarshalIndent(deviceMapFile{deviceMapMagic, sorted(entries)}, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(m.path), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(m.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("device map: %w", err)
	}
	return nil
}
