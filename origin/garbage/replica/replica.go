// Package replica keeps a copy of an origin in another bucket: packs, indexes and journals first, and each record only
// once all that it names is there. Whoever opens the copy, at whatever moment, finds names that are whole.
//
// It never deletes. It leaves out what is of the origin alone, and would mean nothing at the copy, or harm it: leases,
// which tell who reads there; the record of who collects garbage; batches of tombstones, as what is dead there is not
// deleted here; and probes.
package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
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
	// Looked is how many objects of the origin were looked at; records are not among them.
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

// Run copies what the bucket to lacks. An empty bucket becomes the mesh's; another mesh's is content.ErrConflict, and one
// that is no safe place for records content.ErrReadOnly. Damaged packs and records are not copied, nor is a record that
// needs what is not there: they are in the Report, and end nothing. The error is of a store that does not answer, or of
// ctx; then the Report is of a part, and another run sends only what is missing.
func Run(ctx context.Context, from garbage.Source, to bucket.Bucket, cfg Config) (Report, error) {
	from.Bucket, to = bucket.Readable(from.Bucket), bucket.Readable(to)
	c := &copier{
		from: from, to: to, cfg: cfg, reader: pack.NewReader(from.Bucket),
		there: make(map[[16]byte]struct{}), sums: make(map[[16]byte][16]byte), bad: make(map[string]error),
		done: Report{Newer: []string{}, Failures: []Failure{}},
	}
	err := c.run(ctx)
	if err != nil {
		err = fmt.Errorf("copy the origin: %w", err)
	}
	return c.done.sorted(), err
}

func (c *copier) run(ctx context.Context) error {
	mesh := c.from.Verifier.Mesh()
	if err := catalog.CheckMesh(ctx, c.from.Bucket, mesh); err != nil {
		return err
	}
	err := catalog.CheckMesh(ctx, c.to, mesh) // nothing is tried at another mesh's
	if err == nil || errors.Is(err, content.ErrNotFound) {
		err = bucket.Probe(ctx, c.to)
	}
	if err == nil {
		err = catalog.ClaimMesh(ctx, c.to, mesh)
	}
	if err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	for _, space := range []content.KeySpace{content.KeyPacks, content.KeyIndexes, content.KeyJournals} {
		if err := c.objects(ctx, space); err != nil {
			return err
		}
	}
	return c.records(ctx)
}

type copier struct {
	from   garbage.Source
	to     bucket.Bucket
	cfg    Config
	reader *pack.Reader // of from

	mu    sync.Mutex            // guards what follows, and serializes Progress
	there map[[16]byte]struct{} // packs that are at the copy, by half the sums of their keys
	sums  map[[16]byte][16]byte // of segments that were sent, by those too
	bad   map[string]error      // packs that can't be copied
	done  Report
}

func (c *copier) tell(change func(*Report)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if change(&c.done); c.cfg.Progress != nil {
		c.cfg.Progress(c.done)
	}
}

func (c *copier) fail(f Failure) {
	c.tell(func(r *Report) {
		if r.Failed++; len(r.Failures) < FailuresMax {
			r.Failures = append(r.Failures, f)
		}
	})
}
