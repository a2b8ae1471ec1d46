package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

const (
	// uploadTries is how often a pack is sent while its fate is unknown: with the
	// waits below, about a minute of a store that does not answer.
	uploadTries = 8
	// uploadWaitMin and uploadWaitMax bound the wait between two tries, which grows by uploadWaitGrowth.
	uploadWaitMin    = 200 * time.Millisecond
	uploadWaitMax    = 15 * time.Second
	uploadWaitGrowth = 3
)

func (b *Builder) upload(ctx context.Context, s pack.Sealed) error {
	at, err := store(ctx, b.cfg.Bucket, s)
	if err != nil {
		return err
	}
	b.assembler.sending.Delete(s.ID)
	b.indexer.add(ctx, s)
	b.stats.add(func(st *Stats) {
		if st.Packs == 0 || at.Before(st.Since) {
			st.Since = at
		}
		st.Packs++
		st.UploadedBytes += uint64(len(s.Bytes))
	})
	b.cfg.Log.Debug("pack uploaded", "pack", s.ID, "bytes", len(s.Bytes), "frames", len(s.Directory)/pack.EntrySize)
	b.assembler.release(s)
	return nil
}

// store puts a pack under its name, which is random: whoever finds the name taken finds an earlier try of
// this very call, or something is badly wrong. So a lost reply is settled by reading the footer. It returns when
// that was, by the store's clock; zero where nobody can say, as an earlier try may have been there long before.
func store(ctx context.Context, to bucket.Bucket, s pack.Sealed) (at time.Time, err error) {
	doubt := false
	try := func() (time.Time, error) {
		info, err := to.Put(ctx, s.ID.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent())
		switch {
		case err == nil && doubt:
			return time.Time{}, nil
		case err == nil:
			return info.Now, nil
		case errors.Is(err, bucket.ErrUnknown), errors.Is(err, bucket.ErrPrecondition):
			doubt = true
			return time.Time{}, settle(ctx, to, s, err)
		case errors.Is(err, content.ErrUnavailable):
			return time.Time{}, err
		}
		return time.Time{}, backoff.Permanent(err)
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.Multiplier = uploadWaitMin, uploadWaitMax, uploadWaitGrowth
	at, err = backoff.Retry(ctx, try, backoff.WithBackOff(wait), backoff.WithMaxTries(uploadTries))
	if err != nil {
		return at, fmt.Errorf("upload pack %s: %w", s.ID, err)
	}
	return at, nil
}

// settle learns what became of a Put that ended with putErr. Nil means that the
// pack is there; a permanent error, that something else is.
func settle(ctx context.Context, from bucket.Bucket, s pack.Sealed, putErr error) error {
	f, err := pack.ReadFooter(ctx, from, s.ID)
	switch {
	case err == nil && f == s.Footer:
		return nil
	case err == nil || errors.Is(err, content.ErrCorrupt):
		return backoff.Permanent(fmt.Errorf("%w: the name is taken by another object", content.ErrExists))
	case errors.Is(err, content.ErrNotFound):
		return putErr
	case errors.Is(err, content.ErrForbidden):
		return backoff.Permanent(err)
	}
	return err
}

// indexer gathers the directories of packs that were uploaded and writes index objects of them. An index
// object only saves later importers reads: when one cannot be written, that is logged and nothing else.
type indexer struct {
	cfg Config

	mu    sync.Mutex // guards what follows
	packs []index.Pack
	size  int
}

// add takes the directory of a pack that is in the bucket. One that nobody vouches
// for would be believed from its own pack alone.
func (x *indexer) add(ctx context.Context, s pack.Sealed) {
	if x.cfg.fold || len(s.Signature) == 0 {
		return
	}
	x.mu.Lock()
	x.packs = append(x.packs, index.Pack{ID: s.ID, Entries: bytes.Clone(s.Directory), Signature: bytes.Clone(s.Signature)})
	x.size += pack.IDSizeMax + len(s.Directory) + len(s.Signature)
	full := x.size > index.ObjectSizeMax/2
	x.mu.Unlock()
	if full {
		x.flush(ctx)
	}
}

// flush writes what was gathered.
func (x *indexer) flush(ctx context.Context) {
	x.mu.Lock()
	packs := x.packs
	x.packs, x.size = nil, 0
	x.mu.Unlock()
	if len(packs) == 0 {
		return
	}
	id, err := pack.NewID(x.cfg.Scope, x.cfg.Now(), x.cfg.Random)
	if err == nil {
		err = index.Store(ctx, x.cfg.Bucket, id, packs)
	}
	if err != nil {
		x.cfg.Log.Warn("index object not written; later imports read the footers instead", "packs", len(packs), "error", err)
	}
}
