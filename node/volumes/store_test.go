package volumes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// store is an origin that keeps records, while it is up. Safe for concurrent use.
type store struct {
	mu      sync.Mutex
	down    bool
	reads   int                         // also while it is down
	fault   func() (before, after bool) // of a commit: it fails, not applied or applied
	records map[string]catalog.Record
}

func newStore() *store { return &store{records: map[string]catalog.Record{}} }

func (x *store) get(kind content.Kind, name string) (r catalog.Record, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reads++
	r, ok := x.records[string(kind)+":"+name]
	switch {
	case x.down:
		return catalog.Record{}, content.ErrUnavailable
	case !ok || r.Tombstone:
		return r, content.ErrNotFound
	}
	return r, nil
}

// unheard does something of whose commits the replies are lost.
func (x *store) unheard(do func()) {
	x.fault = func() (before, after bool) { return false, true }
	do()
	x.fault = nil
}

func (x *store) has(kind content.Kind, name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.records[string(kind)+":"+name]
	return ok && !r.Tombstone
}

// body is what the record of a volume says.
func (x *store) body(name string) (catalog.Volume, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return catalog.DecodeVolume(content.NewCodec(), x.records["volume:"+name].Body)
}

func (x *store) Volume(_ context.Context, name string) (catalog.Record, error) {
	return x.get(content.KindVolume, name)
}

func (x *store) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	return x.Volume(ctx, name)
}

func (x *store) Snapshot(_ context.Context, name string) (catalog.Record, error) {
	return x.get(content.KindSnapshot, name)
}

func (x *store) list(prefix string) (out []catalog.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, r := range x.records {
		if strings.HasPrefix(id, prefix) && !r.Tombstone {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b catalog.Record) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (x *store) Volumes(context.Context) []catalog.Record { return x.list("volume:") }

func (x *store) Snapshots(_ context.Context, volume string) []catalog.Record {
	return x.list("snapshot:" + volume)
}

func (x *store) Commit(_ context.Context, ch catalog.Change) (catalog.Record, error) {
	return x.write(trust.Envelope{Kind: ch.Kind, Name: ch.Name, Farm: testFarm, Body: ch.Body}, ch.Base)
}

func (x *store) Delete(_ context.Context, base catalog.Record) error {
	_, err := x.write(trust.Envelope{Kind: base.Kind, Name: base.Name, Farm: testFarm, Tombstone: true}, &base)
	return err
}

func (x *store) write(e trust.Envelope, base *catalog.Record) (catalog.Record, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	id := string(e.Kind) + ":" + e.Name
	current, ok := x.records[id]
	before, after := false, false
	if x.fault != nil {
		before, after = x.fault()
	}
	switch {
	case x.down || before:
		return catalog.Record{}, content.ErrUnavailable
	case base == nil && ok && !current.Tombstone:
		return catalog.Record{}, fmt.Errorf("commit: %w", taken(current, content.ErrExists))
	case base != nil && base.ETag != current.ETag:
		return catalog.Record{}, fmt.Errorf("commit: %w", taken(current, content.ErrConflict))
	}
	e.Version, e.SignedAt, e.Commit = current.Version+1, time.Unix(2e9, 0), trust.NewCommit()
	r := catalog.Record{Envelope: e, ETag: fmt.Sprint(e.Commit)}
	x.records[id] = r
	if after {
		return catalog.Record{}, bucket.ErrUnknown
	}
	return r, nil
}

// taken is what a commit is told that finds another record.
type takenError struct {
	*catalog.TakenError
	cause error
}

func (e takenError) Unwrap() []error { return []error{e.TakenError, e.cause} }
func (takenError) Error() string     { return "taken" }

func taken(r catalog.Record, cause error) error {
	return takenError{&catalog.TakenError{Current: r}, cause}
}
