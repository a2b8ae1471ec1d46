package garbage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	volumerecords "github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// farm is that of all nodes.
const farm = "lyon"

// node is a member over all of its lives.
type node struct {
	s      *stage
	at     int
	off    time.Duration // by how much its clock is
	signer trust.Signer
	life   int
	dir    string // what is on its disk
	p      *process
}

// process is one life of a node.
type process struct {
	*node
	ctx    context.Context
	end    context.CancelCauseFunc
	dead   bool // guarded by the stage's mu, as is
	acting int

	store   bucket.Bucket
	cache   *cache.Cache
	work    *operations.Operations
	names   *records.Names
	images  *images.Images
	volumes volumerecords.Records
	disks   map[string]*disk
	busy    map[string]bool // names of disks and instances that a deed is on: the director's alone
}

func (p *process) String() string { return fmt.Sprintf("node%d.%d", p.at, p.life) }

func (n *node) now() time.Time { return n.s.now().Add(n.off) }

// join adds a node whose clock is off.
func (s *stage) join(off time.Duration) {
	n := &node{s: s, at: len(s.nodes), off: off, signer: s.member(), dir: s.folder()}
	s.nodes = append(s.nodes, n)
	n.begin()
}

// folder makes one.
func (s *stage) folder() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	dir := filepath.Join(s.root, fmt.Sprint(s.made))
	if err := os.Mkdir(dir, 0o700); err != nil {
		panic(err)
	}
	return dir
}

// alone has no neighbours.
type alone struct{}

func (alone) Live() []peer.ID { return nil }

// begin starts a node with what is on its disk.
func (n *node) begin() {
	n.life++
	p := &process{node: n, disks: map[string]*disk{}, busy: map[string]bool{}}
	p.ctx, p.end = context.WithCancelCause(context.Background())
	if err := p.build(); err != nil {
		n.s.fault(fmt.Errorf("%s does not start: %w", p, err))
		return
	}
	n.p = p
	n.s.note("%s: is there, its clock %s off", p, n.off)
	p.adopt()
}

func (p *process) build() (err error) {
	quiet, verifier, store := slog.New(slog.DiscardHandler), trust.NewVerifier(p.s.trust.Key.Public()), bucket.Bucket(lane{p})
	if p.s.again != nil {
		store = bucket.Retry(store, *p.s.again)
	}
	p.store = store
	for _, name := range []string{images.TempDir, "disks", "files"} {
		if err := os.MkdirAll(filepath.Join(p.dir, name), 0o700); err != nil {
			return err
		}
	}
	if p.cache, err = cache.Open(cache.Config{Dir: filepath.Join(p.dir, "cache"), Now: p.now, ScrubRate: -1}); err != nil {
		return err
	}
	p.work = operations.New(quiet, p.now)
	reader := pack.NewReader(store)
	fetcher, err := fetch.New(fetch.Config{Cache: p.cache, Members: alone{}, Origin: func() fetch.Origin { return reader }, Verifier: verifier, Identity: p.signer.Identity()})
	if err != nil {
		return err
	}
	kept, err := catalog.New(catalog.Config{
		Bucket: store, Verifier: verifier, Signer: p.signer, Now: p.now,
		Recall: func(kind content.Kind, name string) (catalog.Record, bool) { return p.names.Recall(kind, name) },
	})
	if err != nil {
		return err
	}
	origin := func() *catalog.Catalog { return kept }
	p.names, err = records.New(records.Config{
		Dir: filepath.Join(p.dir, "records"), Reader: origin, Writer: origin, Lost: func(error) {}, Verifier: verifier, Signer: p.signer,
		Ask: func(context.Context, records.Question, int) []records.Answer { return nil },
		Submit: func(context.Context, records.Submission) (records.Answer, error) {
			return records.Answer{}, content.ErrUnavailable
		},
		Learn: func(records.Known) {}, Forget: func(content.CID, content.Scope) {}, Codec: p.s.codec, Now: p.now, Log: quiet,
	})
	if err != nil {
		return err
	}
	booted := boots.New(boots.Config{Dir: filepath.Join(p.dir, "boots"), Codec: p.s.codec, Now: p.now, Log: quiet})
	p.images = images.New(images.Config{
		Dir: p.dir, Names: p.names, Fetcher: fetcher, Boots: booted, Cache: p.cache, Operations: p.work, Self: p.String(), Mesh: func() int { return 3 },
		Readable: func() bucket.Bucket { return store }, Writable: func() (bucket.Bucket, error) { return store, nil },
		Suspect: func(context.Context, ...pack.ID) {}, Signer: p.signer, Verifier: verifier, Codec: p.s.codec, Now: p.now, Log: quiet,
	})
	p.volumes = volumerecords.Records{Registry: registry{p}, Codec: p.s.codec}
	return nil
}

// close ends what a process holds once nothing of it is under way.
func (p *process) close() {
	var errs []error
	for _, d := range p.disks {
		errs = append(errs, d.close())
	}
	errs = append(errs, p.work.Close(context.Background()), p.names.Close(), p.cache.Close())
	if err := errors.Join(errs...); err != nil {
		p.s.fault(fmt.Errorf("%s does not end: %w", p, err))
	}
}

// kill ends a node as kill -9 does: what is on its disk is what was there, and of its requests some get through.
func (n *node) kill() {
	s, p := n.s, n.p
	s.quiet()
	left := s.folder()
	if err := os.CopyFS(left, os.DirFS(n.dir)); err != nil {
		s.fault(err)
	}
	s.note("%s: is killed", p)
	for _, r := range s.ready() {
		if r.p == p && s.chance(3) {
			r.answer(lost)
		}
	}
	s.mu.Lock()
	p.dead = true
	s.mu.Unlock()
	for _, r := range s.ready() {
		if r.p == p {
			r.answer(fails)
		}
	}
	p.end(errAway)
	_ = p.work.Close(context.Background())
	for s.quiet(); ; s.quiet() {
		s.mu.Lock()
		acting := p.acting
		s.mu.Unlock()
		if acting == 0 {
			break
		}
		s.pass(time.Second)
	}
	p.close()
	_ = os.RemoveAll(n.dir)
	n.dir, n.p = left, nil
}

// there are the nodes that are.
func (s *stage) there() (out []*process) {
	for _, n := range s.nodes {
		if n.p != nil {
			out = append(out, n.p)
		}
	}
	return out
}

// acks notes that a record was acknowledged to whoever committed it, if it is this node's own and the last that this knows.
func (p *process) acks(kind content.Kind, name string) {
	if k, ok := p.names.Held(kind, name); ok && k.Signer.Key == p.signer.Key.Public() {
		p.acked(k.Record)
	}
}

func (p *process) acked(r catalog.Record) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.acked[r.Commit] = true
}

// commit has a record written, over the one that it was made from.
func (p *process) commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	r, err := p.names.Commit(ctx, ch)
	if err == nil {
		p.acked(r)
	}
	return r, err
}

// registry is what a node's volumes have of its names.
type registry struct{ p *process }

func (x registry) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.p.names.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

func (x registry) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	return x.Volume(ctx, name)
}

func (x registry) Snapshot(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.p.names.Lookup(ctx, content.KindSnapshot, name, true)
	return k.Record, err
}

func (x registry) list(ctx context.Context, kind content.Kind, begin string) (out []catalog.Record) {
	page, _ := x.p.names.List(ctx, kind, begin, "", 1000)
	for _, k := range page {
		out = append(out, k.Record)
	}
	return out
}

func (x registry) Volumes(ctx context.Context) []catalog.Record {
	return x.list(ctx, content.KindVolume, "")
}

func (x registry) Snapshots(ctx context.Context, volume string) []catalog.Record {
	return x.list(ctx, content.KindSnapshot, volume+"@")
}

func (x registry) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Farm = farm
	return x.p.commit(ctx, ch)
}

func (x registry) Delete(ctx context.Context, base catalog.Record) error {
	_, err := x.p.commit(ctx, catalog.Change{Kind: base.Kind, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}
