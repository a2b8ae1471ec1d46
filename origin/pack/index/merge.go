package index

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// smallMax is how many index objects of less than half of ObjectSizeMax may lie in a scope before they are merged: an
	// importer without a cache reads each.
	smallMax = 16
	// deadMin is the part of an index object that is of packs that are gone before it is written anew: a quarter.
	deadMin = 4
)

// Merged is what Merge has found, and done.
type Merged struct {
	// Written were put, and Deleted went: objects, damaged ones among them. Freed is what the bucket has less of, in bytes.
	Written, Deleted int
	Freed            int64
}

// Merge has the index objects of a scope be few, and say nothing of packs that are gone: those of other packs, of other
// sizes, and of stubs are left out, and so are objects that are damaged, and marks on packs that are gone. What is new is
// put before the old is deleted; importers meanwhile read the one or the other. present says which packs there are; of one
// that may have come since they were listed, the size is negative. newID names what is put. It does what pays, see smallMax
// and deadMin, and nothing at all where an index object, or another key, is of a version that is not known here:
// content.ErrUnknown. It takes the memory of two index objects.
func Merge(ctx context.Context, at bucket.Bucket, scope content.Scope, present func(pack.ID) (size int64, ok bool), newID func() pack.ID) (Merged, error) {
	m := &merge{at: at, present: present, newID: newID, there: make(map[string]bool)}
	err := m.list(ctx, scope)
	if err == nil {
		err = m.choose(ctx)
	}
	if err == nil {
		err = m.all(ctx)
	}
	if err != nil {
		err = fmt.Errorf("merge index objects of scope %q: %w", scope, err)
	}
	return m.out, err
}

type merge struct {
	at      bucket.Bucket
	present func(pack.ID) (int64, bool)
	newID   func() pack.ID

	objects  []bucket.Info
	there    map[string]bool // their keys
	suspects []string        // keys of marks on packs that are gone
	chosen   []bucket.Info   // that are written anew
	damaged  []bucket.Info
	out      Merged
}

// gone reports whether nothing of a pack is needed any more.
func (m *merge) gone(id pack.ID) bool {
	size, ok := m.present(id)
	return !ok || size >= 0 && size <= pack.SizeMin
}

func (m *merge) list(ctx context.Context, scope content.Scope) error {
	for info, err := range m.at.List(ctx, content.KeyIndexes.Of(scope), "") {
		if err != nil {
			return err
		}
		if id, err := pack.CutKey(info.Key, content.KeyIndexes, SuspectSuffix); err == nil {
			if m.gone(id) {
				m.suspects = append(m.suspects, info.Key)
			}
		} else if _, err := pack.CutKey(info.Key, content.KeyIndexes, indexSuffix); err == nil {
			m.objects, m.there[info.Key] = append(m.objects, info), true
		} else {
			return fmt.Errorf("%s: %w", info.Key, content.ErrUnknown)
		}
	}
	return nil
}

// choose reads all, to know what is worth it before anything is done.
func (m *merge) choose(ctx context.Context) error {
	small := 0
	for _, o := range m.objects {
		if o.Size < ObjectSizeMax/2 {
			small++
		}
	}
	for _, o := range m.objects {
		p, err := m.read(ctx, o)
		switch {
		case errors.Is(err, content.ErrUnknown):
			return err
		case errors.Is(err, content.ErrNotFound):
		case errors.Is(err, content.ErrCorrupt):
			m.damaged = append(m.damaged, o)
		case err != nil:
			return err
		case small > smallMax && o.Size < ObjectSizeMax/2 || p.dead*deadMin > o.Size:
			m.chosen = append(m.chosen, o)
		}
	}
	return nil
}

// part is what an index object says that holds.
type part struct {
	packs   []Pack
	sources []string
	size    int64 // of packs and sources, about
	dead    int64 // of what does not hold
}

func (m *merge) read(ctx context.Context, o bucket.Info) (part, error) {
	return bucket.ReadChecked(ctx, m.at, o.Key, pack.SizeMax, func(b []byte, _ bucket.Info) (part, error) {
		packs, sources, err := decodeIndex(b)
		if err != nil {
			return part{}, fmt.Errorf("%s: %w", o.Key, err)
		}
		p := part{sources: []string{o.Key}}
		for _, s := range sources {
			if m.there[s] {
				p.sources = append(p.sources, s)
			}
		}
		for _, s := range p.sources {
			p.size += int64(len(s)) + 3 // and what CBOR adds
		}
		for _, said := range packs {
			n := int64(len(said.ID)+len(said.Entries)+len(said.Signature)) + 32
			size, ok := m.present(said.ID)
			if !ok || size >= 0 && !fits(said, size) || len(said.Signature) == 0 { // without one nobody believes it
				p.dead += n
				continue
			}
			p.packs, p.size = append(p.packs, said), p.size+n
		}
		return p, nil
	})
}

// all writes what was chosen, in groups that one object holds.
func (m *merge) all(ctx context.Context) error {
	var group part
	var from []bucket.Info
	for _, o := range m.chosen {
		p, err := m.read(ctx, o)
		if errors.Is(err, content.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if group.size+p.size > ObjectSizeMax && len(from) > 0 {
			if err := m.replace(ctx, from, group); err != nil {
				return err
			}
			group, from = part{}, nil
		}
		group.packs, group.sources = append(group.packs, p.packs...), append(group.sources, p.sources...)
		group.size, group.dead, from = group.size+p.size, group.dead+p.dead, append(from, o)
	}
	if err := m.replace(ctx, from, group); err != nil {
		return err
	}
	if err := m.remove(ctx, m.damaged); err != nil {
		return err
	}
	for _, key := range m.suspects {
		if err := m.at.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// replace puts one object, and deletes those of which it has all. Killed between, there is what importers read twice.
func (m *merge) replace(ctx context.Context, from []bucket.Info, p part) error {
	if len(from) == 0 || len(from) == 1 && p.dead*deadMin <= from[0].Size { // alone, as the others had no room beside it
		return nil
	}
	if p.packs = unanimous(p.packs); len(p.packs) > 0 {
		slices.Sort(p.sources)
		b, err := encodeIndex(p.packs, slices.Compact(p.sources))
		if err != nil {
			return err
		}
		if err := putOnce(ctx, m.at, string(content.KeyIndexes)+string(m.newID())+indexSuffix, b); err != nil {
			return err
		}
		m.out.Written++
		m.out.Freed -= int64(len(b))
	}
	return m.remove(ctx, from)
}

// unanimous leaves out what is said twice: once where it is the same, and both where it is not, as it is not known here who
// lies.
func unanimous(packs []Pack) (out []Pack) {
	said := make(map[pack.ID]Pack, len(packs))
	lies := make(map[pack.ID]bool)
	for _, p := range packs {
		before, twice := said[p.ID]
		lies[p.ID] = lies[p.ID] || twice && (string(before.Entries) != string(p.Entries) || string(before.Signature) != string(p.Signature))
		said[p.ID] = p
	}
	for id, p := range said {
		if !lies[id] {
			out = append(out, p)
		}
	}
	return out
}

func (m *merge) remove(ctx context.Context, objects []bucket.Info) error {
	for _, o := range objects {
		if err := m.at.Delete(ctx, o.Key); err != nil {
			return err
		}
		m.out.Deleted++
		m.out.Freed += o.Size
	}
	return nil
}
