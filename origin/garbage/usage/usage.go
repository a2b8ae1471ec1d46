// Package usage says who needs the bytes of an origin: by name, by scope, and nobody.
package usage

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
)

// MemoryMax bounds what is kept of names and packs while they are counted, in bytes: some 4 million packs.
const MemoryMax = 512 << 20

// Config says what to count.
type Config struct {
	garbage.Source
	// Progress is told how many records and packs were looked at, by one goroutine at a time; it must return at once. nil
	// is nobody.
	Progress func(records, packs int64)
}

// Report is who needs what. All bytes are those of objects at the origin, but for Stored.
type Report struct {
	Names  []Name  `json:"names"`
	Scopes []Scope `json:"scopes"`
	// Stored is what all roots need by their manifests, each root once.
	Stored int64 `json:"stored" doc:"bytes that the roots need, each root counted once"`
	// Live are packs that a record names, Dead those that none does.
	Live garbage.Amount `json:"live"`
	Dead garbage.Amount `json:"dead"`
	// DeadWithin is the least that is dead in packs that are named: as far as manifests tell.
	DeadWithin int64 `json:"dead_within" doc:"bytes that are dead in packs that are named, at least"`
	// Volumes are those that have segments at the origin, by their IDs.
	Volumes  []Volume       `json:"volumes"`
	Segments garbage.Amount `json:"segments"`
	Indexes  garbage.Amount `json:"indexes"`
	Records  garbage.Amount `json:"records"`
	// Broken are records and manifests that could not be read: what they name is among the dead here, and is not deleted.
	Broken []garbage.Broken `json:"broken"`
}

// Name is what one name needs.
type Name struct {
	Name  string       `json:"name" doc:"as image:debian"`
	Kind  content.Kind `json:"kind"`
	Scope string       `json:"scope"`
	// Stored is what its root needs by its manifest.
	Stored int64 `json:"stored"`
	// Own are packs that it alone refers to, Shared those that others do too.
	Own    int64 `json:"own"`
	Shared int64 `json:"shared"`
	// Segments is its chain, which others may name too.
	Segments int64 `json:"segments"`
}

// Scope is what lies in one scope.
type Scope struct {
	Scope string         `json:"scope"`
	Live  garbage.Amount `json:"live"`
	Dead  garbage.Amount `json:"dead"`
}

// Volume is what the journal of a volume takes.
type Volume struct {
	ID string `json:"id"`
	// Name is who has it; "" for a volume that has no record any more.
	Name string `json:"name,omitempty"`
	garbage.Amount
	// Named is what of it a record names.
	Named garbage.Amount `json:"named"`
}

// Run counts. What was put and is not committed yet counts as dead. More names and packs than there is memory for, by
// MemoryMax, are content.ErrNoSpace.
func Run(ctx context.Context, cfg Config) (Report, error) {
	r, err := newCount(cfg, MemoryMax).run(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("count what is at the origin: %w", err)
	}
	return r, nil
}
