// Package upkeep looks after the origin from this node: it has garbage collected, checks what is there, copies it, and weighs
// it, when somebody asks for that and at intervals. How that is done is for the packages of origin/garbage to say.
package upkeep

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Config is what an Upkeep is built from.
type Config struct {
	// URL is the origin's, as far as it is known.
	URL string
	// File remembers over starts how far a check is, and when the last one ended. Temp is a folder for working files.
	File, Temp string
	// CollectEvery and VerifyEvery are the intervals; zero is never.
	CollectEvery, VerifyEvery time.Duration
	// Readable returns the origin, nil while it can't be read, and Writable the same, or why nothing can be written to it.
	Readable func() bucket.Bucket
	Writable func() (bucket.Bucket, error)
	// Target opens another store, by its URL.
	Target func(ctx context.Context, url string) (bucket.Bucket, error)
	// Suspect is told of packs that were found damaged.
	Suspect func(context.Context, ...pack.ID)
	// Recall returns a record's bytes as they were when they had that ETag, nil where they are not known.
	Recall     func(space content.Kind, name, etag string) []byte
	Operations *operations.Operations
	Signer     trust.Signer
	Verifier   *trust.Verifier
	Log        *slog.Logger
}

// Upkeep is the work on the origin of one node. Safe for concurrent use. Use: New, then Run.
type Upkeep struct {
	cfg   Config
	codec *content.Codec
	begun time.Time // by a clock that nobody sets
	stands
}

// New builds an Upkeep.
func New(cfg Config) *Upkeep {
	u := &Upkeep{cfg: cfg, codec: content.NewCodec(), begun: time.Now()}
	u.recall()
	return u
}

// origin is what operations and their errors call what they are on: no image has such a name.
const origin = "the origin"

// begin starts an operation whose requests come after all others'.
func (u *Upkeep) begin(kind, target string, work func(context.Context, *operations.Operation) error) (operations.View, error) {
	return u.cfg.Operations.Start(kind, target, func(ctx context.Context, op *operations.Operation) error {
		return work(budget.With(ctx, budget.NewTurn(budget.Seeding, kind)), op)
	})
}

// source is the origin, as it is read now, by the store's own clock.
func (u *Upkeep) source(ctx context.Context, at bucket.Bucket) (garbage.Source, error) {
	now, err := clock(ctx, at)
	return garbage.Source{Bucket: at, Verifier: u.cfg.Verifier, Now: now, Recall: u.cfg.Recall}, err
}

// readable returns the origin, or says why it can't be read.
func (u *Upkeep) readable() (bucket.Bucket, error) {
	if at := u.cfg.Readable(); at != nil {
		return at, nil
	}
	at, err := u.cfg.Writable()
	if err == nil {
		return at, nil
	}
	return nil, fmt.Errorf("%w; ask a node that reaches it", err)
}

// clock is the store's, as its answer says it now; this host's where it says none.
func clock(ctx context.Context, at bucket.Bucket) (func() time.Time, error) {
	_, info, err := bucket.ReadAll(ctx, at, content.KeyMesh, content.RecordSizeMax)
	if err != nil {
		return nil, fmt.Errorf("ask the origin for its time: %w", err)
	}
	if info.Now.IsZero() {
		return time.Now, nil
	}
	asked := time.Now()
	return func() time.Time { return info.Now.Add(time.Since(asked)) }, nil
}
