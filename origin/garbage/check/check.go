// Package check reads what the records of an origin name, and says which names are hurt: records whose signature or body
// is bad, map nodes, pages, manifests and chunks that are not there or something else, packs that are too short, and
// segments of journals that are missing or damaged. What several names share is read once, and found for each.
//
// It repairs nothing. Content that is imported again is stored anew where it is damaged, once the packs that are suspect
// were marked so (index.Suspect).
package check

import (
	"context"

	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// HurtMax bounds the names that a Report lists, and DamagesMax what it says of each: who has more has lost the bucket,
	// and needs no list.
	HurtMax    = 10_000
	DamagesMax = 10
	// SuspectMax bounds the packs that a Report lists as suspect.
	SuspectMax = 10_000
)

// Config says what to check, and how.
type Config struct {
	garbage.Source
	// ReadData is the share of the chunks that is read, of 1: 1 is all, 0 none. They are chosen by runs of packs, by Seed:
	// runs with other seeds come by all of them in time. All else is always read: records, map nodes, pages, manifests and
	// segments; and whether each pack is there and long enough for what it is to have is told from a list.
	ReadData float64
	Seed     uint64
	// After is the key behind which to go on: the Last of what an earlier run has told; "" is from the beginning.
	After string
	// Progress is told what was found so far, by one goroutine at a time; it must return at once. nil is nobody.
	Progress func(Report)
}

// Report is what was found. What is said of packs and chunks counts each once, whoever names it.
type Report struct {
	// Last is the key of the last record that is done, and with it all before: where a later run may go on.
	Last string `json:"last" doc:"the key of the last record that is done"`
	// Records were looked at, and Roots are those that they name.
	Records int64 `json:"records"`
	Roots   int64 `json:"roots"`
	// Chunks and Nodes were read and are right, a node with its page; StoredBytes is what the chunks took. Unread chunks
	// were not chosen.
	Chunks      uint64 `json:"chunks"`
	Nodes       uint64 `json:"nodes"`
	StoredBytes uint64 `json:"stored_bytes"`
	Unread      uint64 `json:"unread" doc:"chunks of which was only looked whether their packs can have them"`
	// Segments of journals were read and are right.
	Segments     uint64 `json:"segments"`
	SegmentBytes uint64 `json:"segment_bytes"`
	// HurtNames is how many names are hurt, and Hurt are the first HurtMax of them, by their keys.
	HurtNames int64  `json:"hurt_names"`
	Hurt      []Hurt `json:"hurt"`
	// Suspect are packs that hold something else than their own directories say, see index.Suspect.
	Suspect []pack.ID `json:"suspect"`
}

// Hurt is a name that is not whole.
type Hurt struct {
	Name string `json:"name" doc:"as image:debian"`
	Key  string `json:"key" doc:"of its record"`
	// Bad is how many objects are damaged, and Missing how many are not there. What lies under a bad map node is not known,
	// and not counted.
	Bad     uint64 `json:"bad"`
	Missing uint64 `json:"missing"`
	// Damages says of the first DamagesMax what is wrong.
	Damages []string `json:"damages"`
}

// Run checks all records behind cfg.After, in the order of their keys. What is broken is in the Report, and ends nothing.
// The error is of a store that does not answer, of ctx, or of a key among the records that is none of a record's: then the
// Report is of a part, and another run may go on behind its Last.
func Run(ctx context.Context, cfg Config) (Report, error) { panic("not yet") }
