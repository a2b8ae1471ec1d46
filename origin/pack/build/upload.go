package build

import (
	"bytes"
	"context"
	"sync"

	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

func (b *Builder) upload(ctx context.Context, s pack.Sealed) error {
	at, err := pack.Store(ctx, b.cfg.Bucket, s)
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
