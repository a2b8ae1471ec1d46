// Package replica keeps a copy of an origin in another bucket: packs, indexes and journals first, and each record only
// once all that it names is there. Whoever opens the copy, at whatever moment, finds names that are whole.
//
// It never deletes. It leaves out what is of the origin alone, and would mean nothing at the copy, or harm it: leases,
// which tell who reads there; the record of who collects garbage; batches of tombstones, as what is dead there is not
// deleted here; and probes.
package replica

import (
	"context"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/garbage"
)

// FailuresMax bounds the Failures that a Report lists.
const FailuresMax = 1000

// Config says how to copy.
type Config struct {
	// Dir is where working files go, for segments that are too large for memory.
	Dir string
	// Progress is told how far it is, by one goroutine at a time; it must return at once. nil is nobody.
	Progress func(Report)
}

// Report is what was done.
type Report struct {
	// Looked is how many objects of the origin were looked at, of Total; records are not among them.
	Looked garbage.Amount `json:"looked"`
	// Sent objects were copied, and Present were there already.
	Sent    garbage.Amount `json:"sent"`
	Present garbage.Amount `json:"present"`
	// Records were looked at, of which RecordsSent were copied.
	Records     int64 `json:"records"`
	RecordsSent int64 `json:"records_sent"`
	// Newer are names that have a later version at the copy, which stays; at most FailuresMax.
	Newer []string `json:"newer"`
	// Failed is how many objects and records were not copied, as they are damaged or need what is; Failures are the first
	// FailuresMax of them.
	Failed   int64     `json:"failed"`
	Failures []Failure `json:"failures"`
}

// Failure is what was not copied.
type Failure struct {
	// Name is whose record it is, as image:debian; "" for an object that no name is known of.
	Name  string `json:"name,omitempty"`
	Key   string `json:"key"`
	Error string `json:"error"`
}

// Run copies what the bucket to lacks. An empty bucket becomes the mesh's; another mesh's is content.OtherMesh, and one
// that is no safe place for records content.ErrReadOnly. Damaged packs and records are not copied, nor is a record that
// needs what is not there: they are in the Report, and end nothing. The error is of a store that does not answer, or of
// ctx; then the Report is of a part, and another run sends only what is missing.
func Run(ctx context.Context, from garbage.Source, to bucket.Bucket, cfg Config) (Report, error) {
	panic("not yet")
}
