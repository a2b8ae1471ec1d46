package images

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// world is Images of a founder that has no network, with what they stand on.
type world struct {
	*Images
	store bucket.Bucket
	away  bool // the store does not answer
}

// newWorld has an origin in memory.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOver(t, mem.New(t, mem.Config{}))
}

func newWorldOver(t *testing.T, store bucket.Bucket) *world {
	t.Helper()
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "lyon"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{store: store}
	cfg := Config{
		Dir: t.TempDir(), Cache: openCache(t), Signer: trust.Signer{Key: key, Chain: chain}, Verifier: trust.NewVerifier(mesh.Public()),
		Readable: func() bucket.Bucket { return store }, Writable: func() (bucket.Bucket, error) { return store, nil },
		Suspect: func(ctx context.Context, packs ...pack.ID) {
			for _, id := range packs {
				if err := index.Suspect(ctx, store, id); err != nil {
					t.Error(err)
				}
			}
		},
		Codec: content.NewCodec(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	cfg.Operations = operations.New(cfg.Log, cfg.Now)
	cfg.Fetcher = newFetcher(t, cfg, store)
	cfg.Boots = boots.New(boots.Config{Dir: t.TempDir(), Codec: cfg.Codec, Now: cfg.Now, Log: cfg.Log})
	recall := func(kind content.Kind, name string) (catalog.Record, bool) { return cfg.Names.Recall(kind, name) }
	kept, err := catalog.New(catalog.Config{Bucket: store, Verifier: cfg.Verifier, Signer: cfg.Signer, Recall: recall})
	if err != nil {
		t.Fatal(err)
	}
	reader := func() *catalog.Catalog {
		if w.away {
			return nil
		}
		return kept
	}
	cfg.Names, err = records.New(records.Config{
		Dir: t.TempDir(), Reader: reader, Writer: reader, Lost: func(error) {}, Verifier: cfg.Verifier, Signer: cfg.Signer,
		Ask: func(context.Context, records.Question, int) []records.Answer { return nil },
		Submit: func(context.Context, records.Submission) (records.Answer, error) {
			return records.Answer{}, content.ErrUnavailable
		},
		Learn: func(records.Known) {}, Forget: func(content.CID, content.Scope) {}, Codec: cfg.Codec, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(cfg.Dir, TempDir), 0o700); err != nil {
		t.Fatal(err)
	}
	w.Images = New(cfg)
	return w
}

func openCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.Open(cache.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// alone has no neighbours.
type alone struct{}

func (alone) Live() []peer.ID { return nil }

// newFetcher brings what is in a store into the cache of a Config.
func newFetcher(t *testing.T, cfg Config, store bucket.Bucket) *fetch.Fetcher {
	t.Helper()
	f, err := fetch.New(fetch.Config{
		Cache: cfg.Cache, Members: alone{}, Origin: func() fetch.Origin { return pack.NewReader(store) }, Verifier: cfg.Verifier, Identity: cfg.Signer.Identity(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}
