// Package mounts shows trees as folders of this host, read-only: the kernel asks for what its users read, and it is
// brought in then.
package mounts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// mountsMax bounds the mounts of a node; each has a goroutine or a few, and the table of its tree.
	mountsMax = 256
	// againEvery is how often a mount is tried again that a start could not bring back: the origin may have been away.
	againEvery = 10 * time.Second
)

// Config says what Mounts work with.
type Config struct {
	// File remembers the mounts over starts.
	File string
	// Open opens the tree that a name stands for, and says which that is.
	Open func(ctx context.Context, name string) (*tree.Tree, pack.Head, error)
	Now  func() time.Time
	Log  *slog.Logger
}

// Mount is a tree at a folder.
type Mount struct {
	Name  string      `json:"name"`
	Dir   string      `json:"dir"`
	CID   content.CID `json:"cid" doc:"the root that is shown: what the name stood for when it was mounted, or the node started"`
	Since time.Time   `json:"since"`
	Error string      `json:"error,omitempty" doc:"why it is not there; it is tried again"`
}

// Mounts are those of this node. Safe for concurrent use.
type Mounts struct {
	cfg Config

	changing sync.Mutex // held while one is made, or ended
	mu       sync.Mutex // guards what follows
	all      []*mounted // by folder
}

// mounted is a mount, and what ends it; nil while it is not there.
type mounted struct {
	Mount
	head pack.Head
	end  func(force bool) error
	gone <-chan struct{} // closed once it is not there any more, whoever ended it
}

// lost reports whether somebody else has ended a mount.
func (m *mounted) lost() bool {
	select {
	case <-m.gone: // never, while it is nil
		return true
	default:
		return false
	}
}

// New returns the mounts that are remembered, none of which is there before Run.
func New(cfg Config) (*Mounts, error) {
	m := &Mounts{cfg: cfg}
	b, err := os.ReadFile(cfg.File)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return m, nil
	}
	var all []Mount
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("mounts in %s: %w: %w; remove the file to begin without", cfg.File, content.ErrCorrupt, err)
	}
	for _, one := range all {
		one.Error = "the node has just started"
		m.all = append(m.all, &mounted{Mount: one})
	}
	return m, nil
}

// Run brings back what is remembered, until ctx ends; then nothing is mounted any more, and remembered.
// A nil Mounts has none.
func (m *Mounts) Run(ctx context.Context) error {
	if m == nil {
		return nil
	}
	tick := time.Tick(againEvery)
	for {
		m.again(ctx)
		select {
		case <-tick:
		case <-ctx.Done():
			return m.close()
		}
	}
}

// Serve shows a tree at a folder until somebody unmounts it.
func Serve(t *tree.Tree, name, dir string, log *slog.Logger) error {
	_, gone, err := show(t, name, dir, log)
	if err == nil {
		<-gone
	}
	return err
}

// again makes the mounts that are not there.
func (m *Mounts) again(ctx context.Context) {
	m.changing.Lock()
	defer m.changing.Unlock()
	for _, one := range m.snapshot() {
		if one.end != nil && !one.lost() || ctx.Err() != nil {
			continue
		}
		now, err := m.make(ctx, one.Mount)
		if err != nil {
			now = &mounted{Mount: one.Mount}
			now.Error = err.Error()
			m.cfg.Log.Warn("a tree can't be mounted again yet", "name", one.Name, "dir", one.Dir, "err", err)
		}
		m.put(now)
	}
}

func (m *Mounts) close() (err error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	for _, one := range m.snapshot() {
		if one.end != nil {
			err = errors.Join(err, one.end(true))
		}
	}
	return err
}

func (m *Mounts) snapshot() []*mounted {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

// put has a mount among those that there are.
func (m *Mounts) put(one *mounted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, there := slices.BinarySearchFunc(m.all, one.Dir, byDir)
	if there {
		m.all[i] = one
	} else {
		m.all = slices.Insert(m.all, i, one)
	}
}

func byDir(one *mounted, dir string) int { return cmp.Compare(one.Dir, dir) }

// List returns the mounts, by folder.
func (m *Mounts) List() []Mount {
	out := []Mount{}
	for _, one := range m.snapshot() {
		out = append(out, one.Mount)
	}
	return out
}

// Shown yields what is shown now, by folder.
func (m *Mounts) Shown(yield func(dir string, head pack.Head) bool) {
	for _, one := range m.snapshot() {
		if one.end != nil && !one.lost() && !yield(one.Dir, one.head) {
			return
		}
	}
}

// Mount shows a tree at a folder that is there and empty, and remembers that. The same again is success.
func (m *Mounts) Mount(ctx context.Context, name, dir string) (Mount, error) {
	if !filepath.IsAbs(dir) {
		return Mount{}, fmt.Errorf("mount %q at %q: %w: want an absolute path on the node's host", name, dir, content.ErrInvalid)
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	dir = filepath.Clean(dir)
	all := m.snapshot()
	i, there := slices.BinarySearchFunc(all, dir, byDir)
	switch {
	case there && all[i].Name != name:
		return Mount{}, fmt.Errorf("mount %q at %s: %w: %q is mounted there", name, dir, content.ErrConflict, all[i].Name)
	case there && !all[i].lost():
		return all[i].Mount, nil
	case !there && len(all) >= mountsMax:
		return Mount{}, fmt.Errorf("mount %q: %w: this node has %d mounts, as many as it may", name, content.ErrConflict, len(all))
	}
	if err := mayHide(dir, filepath.Dir(m.cfg.File)); err != nil {
		return Mount{}, fmt.Errorf("mount %q at %s: %w", name, dir, err)
	}
	asked := Mount{Name: name, Dir: dir, Since: m.cfg.Now(), Error: "it is being mounted"}
	m.put(&mounted{Mount: asked})
	err := m.remember() // before it is there: a start makes whole what a crash cuts short
	var one *mounted
	if err == nil {
		one, err = m.make(ctx, asked)
	}
	if err != nil {
		if m.take(dir); there { // it is tried again, as before
			m.put(all[i])
		}
		return Mount{}, errors.Join(fmt.Errorf("mount %q at %s: %w", name, dir, err), m.remember())
	}
	m.put(one)
	return one.Mount, nil
}

// mayHide fails unless dir is a folder in which nothing is hidden by a mount, and none of the node's own.
func mayHide(dir, own string) error {
	in, err := os.ReadDir(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		own, err = filepath.EvalSymlinks(own)
	}
	way, outside := filepath.Rel(own, dir)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", content.ErrInvalid, err)
	case outside == nil && filepath.IsLocal(way):
		return fmt.Errorf("%w: it is in this node's own data folder", content.ErrInvalid)
	case len(in) > 0:
		return fmt.Errorf("%w: the folder is not empty", content.ErrConflict)
	}
	return nil
}

// make mounts what a name stands for. Called with changing.
func (m *Mounts) make(ctx context.Context, one Mount) (*mounted, error) {
	t, head, err := m.cfg.Open(ctx, one.Name)
	if err != nil {
		return nil, err
	}
	root, err := head.Root.Encode(content.NewCodec())
	if err != nil {
		return nil, err
	}
	one.CID, one.Error = root.CID(), ""
	end, gone, err := show(t, one.Name, one.Dir, m.cfg.Log)
	return &mounted{one, head, end, gone}, err
}

// take has a mount among those that there are no more.
func (m *Mounts) take(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = slices.DeleteFunc(m.all, func(one *mounted) bool { return one.Dir == dir })
}

// Unmount ends a mount; none is success. While somebody uses it, it is ErrConflict.
func (m *Mounts) Unmount(_ context.Context, dir string) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	dir = filepath.Clean(dir)
	all := m.snapshot()
	i, there := slices.BinarySearchFunc(all, dir, byDir)
	if !there {
		return nil
	}
	if all[i].end != nil {
		if err := all[i].end(false); err != nil {
			return fmt.Errorf("unmount %s: %w: somebody uses it: %w", dir, content.ErrConflict, err)
		}
	}
	m.take(dir)
	return m.remember()
}

// remember writes the mounts to the file.
func (m *Mounts) remember() error {
	b, err := json.MarshalIndent(m.List(), "", " ")
	if err == nil {
		err = durable.Place(m.cfg.File, append(b, '\n'), 0o600)
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(m.cfg.File))
	}
	if err != nil {
		return fmt.Errorf("remember the mounts: %w", err)
	}
	return nil
}
