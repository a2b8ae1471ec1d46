package cache

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	pinsDir  = "pins"
	pinMagic = "GRPINS\x00\x01"
)

// Pin keeps chunks from eviction under a name, those too that come later; it
// replaces what the name pinned before. It is durable when it returns. The list
// takes 32 bytes a chunk.
func (c *Cache) Pin(name string, ids iter.Seq[content.CID]) error {
	if err := content.CheckName(name); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	list := slices.Collect(ids)
	b := []byte(pinMagic)
	for _, id := range list {
		b = append(b, id[:]...)
	}
	dir := filepath.Join(c.cfg.Dir, pinsDir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	slices.SortFunc(list, compareCIDs)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins[name] = list
	c.applyPins()
	return nil
}

// Unpin lets what the name pinned go, unless another name pins it too.
func (c *Cache) Unpin(name string) error {
	if err := content.CheckName(name); err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	if err := durable.Remove(filepath.Join(c.cfg.Dir, pinsDir, name)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("unpin %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pins, name)
	c.applyPins()
	return nil
}

// Pinned returns the names that pin something.
func (c *Cache) Pinned() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for name := range c.pins {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func compareCIDs(a, b content.CID) int { return strings.Compare(string(a[:]), string(b[:])) }

// applyPins sets the bit of each entry anew. Called with mu.
func (c *Cache) applyPins() {
	t := c.table.Load()
	set := func(i uint64, bit uint64) {
		for p := t.place(i); !t.swap(i, p, p.with(pinShift, 1, bit)); p = t.place(i) {
		}
	}
	for i := range t.n {
		if t.word0(i) > wordRemoved && t.place(i).pinned() {
			set(i, 0)
		}
	}
	for _, list := range c.pins {
		for _, id := range list {
			if i, _, ok := t.find(t.hash(id)); ok {
				set(i, 1)
			}
		}
	}
}

// pinBit tells whether a newcomer is pinned. Called with mu.
func (c *Cache) pinBit(id content.CID) uint64 {
	for _, list := range c.pins {
		if _, ok := slices.BinarySearchFunc(list, id, compareCIDs); ok {
			return 1
		}
	}
	return 0
}

// loadPins reads the lists at a start. A damaged one is passed over: its chunks
// may be evicted, nothing worse.
func (c *Cache) loadPins() {
	c.pins = map[string][]content.CID{}
	files, err := os.ReadDir(filepath.Join(c.cfg.Dir, pinsDir))
	if err != nil {
		return
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(c.cfg.Dir, pinsDir, f.Name()))
		body, ok := strings.CutPrefix(string(b), pinMagic)
		if err != nil || !ok || len(body)%content.CIDSize != 0 {
			c.cfg.Log.Warn("a list of pins is damaged; pin again", "name", f.Name(), "err", err)
			continue
		}
		var list []content.CID
		for ; len(body) > 0; body = body[content.CIDSize:] {
			list = append(list, content.CID([]byte(body[:content.CIDSize])))
		}
		slices.SortFunc(list, compareCIDs)
		c.pins[f.Name()] = list
	}
	c.applyPins()
}
