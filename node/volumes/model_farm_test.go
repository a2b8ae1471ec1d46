package volumes

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/mem"
)

// bench is a testing.TB for one run of a model: what it has to clean up goes with that.
type bench struct {
	testing.TB
	root string // folders are made in there

	mu       sync.Mutex // guards what follows
	made     int
	misused  []string
	cleanups []func()
}

func newBench(t testing.TB) *bench {
	root := os.TempDir()
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() { // a disk that syncs at once
		root = "/dev/shm"
	}
	root, err := os.MkdirTemp(root, "grange-model-")
	if err != nil {
		t.Fatal(err)
	}
	return &bench{TB: t, root: root, cleanups: []func(){func() { os.RemoveAll(root) }}}
}

func (b *bench) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

func (b *bench) TempDir() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made++
	dir := filepath.Join(b.root, fmt.Sprint(b.made))
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	return dir
}

// Errorf keeps what the bucket says of its misuse.
func (b *bench) Errorf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.misused = append(b.misused, fmt.Sprintf(format, args...))
}

func (b *bench) end() {
	for _, f := range slices.Backward(b.cleanups) {
		f()
	}
}

// farm are members at one origin: the first ones have volumes, and all hold for others.
type farm struct {
	*bench
	shelf   shelf
	signer  trust.Signer
	mesh    *trust.Verifier
	catalog *catalog.Catalog // the origin's own, which nothing befalls
	members []*member
	log     []string // what was done
}

const (
	farmMembers = 4
	farmNodes   = 2 // of those
)

func newFarm(t testing.TB) *farm {
	b := newBench(t)
	f := &farm{bench: b, shelf: newShelf(b)}
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: testFarm}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.signer, f.mesh = trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(mesh.Public())
	f.catalog = f.catalogOver(f.shelf.bucket)
	for range farmMembers {
		m := &member{farm: f, at: len(f.members), key: trust.NewPrivateKey().Public(), dir: b.TempDir()}
		m.peer = exchange.Peer{ID: identity.PeerID(m.key), Identity: trust.Identity{Key: m.key, Role: trust.RoleNode, Farm: testFarm}}
		f.members = append(f.members, m)
	}
	for _, m := range f.members {
		m.begin()
	}
	return f
}

func (f *farm) catalogOver(b bucket.Bucket) *catalog.Catalog {
	c, err := catalog.New(catalog.Config{Bucket: b, Verifier: f.mesh, Signer: f.signer})
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// close ends all.
func (f *farm) close() {
	for _, m := range f.members {
		m.end()
	}
	f.end()
}

func (f *farm) nodes() []*member { return f.members[:farmNodes] }

func (f *farm) member(key trust.PublicKey) *member {
	return f.members[slices.IndexFunc(f.members, func(m *member) bool { return m.key == key })]
}

// member is one of the farm, over all of its lives.
type member struct {
	farm  *farm
	at    int
	key   trust.PublicKey
	peer  exchange.Peer
	dir   string
	slept time.Duration // that it stood still
	left  string        // the folder as a kill has left it

	*Volumes               // nil for who only holds
	image    catalog.Image // that was published last
	store    *holders.Store
	cable    *cable
	stop     func()
}

func (m *member) String() string { return fmt.Sprintf("node%d", m.at) }

// log has what a member says of trouble be beside what is done.
func (m *member) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(m, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// Write is for the log.
func (m *member) Write(b []byte) (int, error) {
	m.farm.note("    %s says: %s", m, bytes.TrimSpace(b))
	return len(b), nil
}

// note keeps what was done, for who reads of a failure.
func (f *farm) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

// begin starts the processes of a member in its folder.
func (m *member) begin() {
	f := m.farm
	c := &cable{m: m}
	m.cable, m.left = c, ""
	var err error
	if m.store, err = holders.Open(holders.StoreConfig{Dir: filepath.Join(m.dir, "held"), Farm: testFarm}); err != nil {
		f.Fatal(err)
	}
	m.stop = func() {}
	if m.at >= farmNodes {
		return
	}
	store := wired{f.shelf.bucket, c}
	m.Volumes, err = New(context.Background(), Config{
		Dir: filepath.Join(m.dir, "volumes"), NBD: func(ctx context.Context) (nbd.Config, error) {
			l, err := nbd.Listen(ctx, "unix:"+filepath.Join(f.TempDir(), "s"))
			return nbd.Config{Listeners: []net.Listener{l}}, err
		},
		Self: m.key, NodeID: m.String(), Farm: testFarm, Library: f.shelf, Registry: ledger{f.catalogOver(store)},
		Origin: func() (bucket.Bucket, error) { return store, nil },
		Who:    func(key trust.PublicKey) string { return f.member(key).String() },
		Away:   func(_ context.Context, key trust.PublicKey) bool { return c.parted(f.member(key)) },
		Member: func(_ context.Context, name string) (trust.PublicKey, string, error) {
			for _, other := range f.nodes() {
				if other.String() == name {
					return other.key, name, nil
				}
			}
			return trust.PublicKey{}, "", content.ErrNotFound
		},
		Call: c.call, Holders: &holders.Farm{Self: m.key, Lane: c, Live: c.live, Fills: make(chan struct{}, holders.FillsMax), Log: m.log()},
		Signer: f.signer, Publish: func(_ context.Context, _ string, body catalog.Image, _ bool) error { m.image = body; return nil },
		Called: func(trust.PublicKey) string { return "" }, Returned: func() int64 { return 0 }, Now: time.Now,
		Clock: func() time.Duration { return m.slept }, At: c.at, Log: m.log(),
	})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for _, run := range []func(context.Context) error{m.errands.Run, m.watchPulse} {
		work.Go(func() { _ = run(ctx) }) // they end with ctx alone
	}
	m.stop = func() { cancel(); work.Wait() }
}

// end closes what is open.
func (m *member) end() {
	m.stop()
	if m.Volumes != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := m.Run(ctx); err != nil && m.left == "" { // else nobody hears it
			m.farm.Errorf("%s does not end as it should: %v", m, err)
		}
	}
	if err := m.store.Close(); err != nil {
		m.farm.Errorf("%s: %v", m, err)
	}
}

// again starts a member that was killed, from what that has left.
func (m *member) again() {
	dead, left := m.dir, m.left
	m.end()
	if err := os.RemoveAll(dead); err != nil {
		m.farm.Fatal(err)
	}
	m.dir = left
	m.begin()
}

// cable is how one life of a member reaches others, and what befalls it.
type cable struct {
	m *member

	mu         sync.Mutex // guards what follows
	dead       bool       // killed: it goes on for a moment, and nobody sees anything of it
	offOrigin  bool
	offMembers bool
	fate       fate
}

// fate is what befalls a member within one deed.
type fate struct {
	Kind string
	Step string // of killedAt
	Nth  int    // that comes by
}

// The kinds of fates. Of calls that change something the origin.
const (
	lost       = "lost"    // a call does not arrive
	unheard    = "unheard" // its reply does not
	killedOn   = "killed before a call"
	killedPast = "killed behind a call"
	killedAt   = "killed at a step"
)

func (c *cable) befall(f fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fate = f
}

// kill leaves the folder as it is.
func (c *cable) kill() {
	c.mu.Lock()
	again := c.dead
	c.dead = true
	c.mu.Unlock()
	if !again {
		c.m.left = c.m.farm.TempDir()
		copyFolder(c.m.farm, c.m.left, c.m.dir)
	}
}

func (c *cable) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// hits counts what comes by, and reports whether the fate is due.
func (c *cable) hits(kind, step string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.fate.Kind != kind || c.fate.Step != step {
		return false
	}
	c.fate.Nth--
	return c.fate.Nth == -1
}

// at is a step of the product.
func (c *cable) at(step string) {
	if c.hits(killedAt, step) {
		c.kill()
	}
}

// away says why the origin is not in reach.
func (c *cable) away() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.offOrigin {
		return fmt.Errorf("%w: the origin", content.ErrUnavailable)
	}
	return nil
}

// change does what changes something elsewhere.
func (c *cable) change(do func() error) error {
	if c.hits(killedOn, "") {
		c.kill()
	}
	if err := c.away(); err != nil {
		return err
	}
	if c.hits(lost, "") {
		return fmt.Errorf("%w: it did not arrive", bucket.ErrUnknown)
	}
	err := do()
	switch {
	case c.hits(killedPast, ""):
		c.kill()
		return content.ErrUnavailable
	case c.hits(unheard, ""):
		return fmt.Errorf("%w: the reply is lost", bucket.ErrUnknown)
	}
	return err
}

// parted reports whether two members don't reach each other.
func (c *cable) parted(other *member) bool {
	for _, x := range []*cable{c, other.cable} {
		x.mu.Lock()
		off := x.dead || x.offMembers
		x.mu.Unlock()
		if off && other != c.m {
			return true
		}
	}
	return false
}

func (c *cable) live() (out []trust.PublicKey) {
	for _, other := range c.m.farm.members {
		if other != c.m && !c.parted(other) {
			out = append(out, other.key)
		}
	}
	return out
}

// call is Config.Call.
func (c *cable) call(ctx context.Context, to trust.PublicKey, method string, body []byte) (answer []byte, err error) {
	other := c.m.farm.member(to)
	if other.Volumes == nil || c.parted(other) || c.isDead() {
		return nil, content.ErrUnavailable
	}
	answer, err = other.Answer(ctx, c.m.peer.Identity, method, body)
	if c.parted(other) || c.isDead() { // who was killed meanwhile has not answered
		return nil, content.ErrUnavailable
	}
	return answer, err
}

// Ask implements holders.Lane.
func (c *cable) Ask(_ context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	i := slices.IndexFunc(c.m.farm.members, func(m *member) bool { return m.peer.ID == to })
	other := c.m.farm.members[i]
	if c.isDead() || c.parted(other) {
		return nil, content.ErrUnavailable
	}
	if e, ok := m.(wire.Extend); ok {
		e.Bytes = bytes.Clone(e.Bytes)
		m = e
	}
	finish := other.store.Take(c.m.peer, m)
	return func() (*wire.Held, []byte, error) {
		held, b, err := finish(context.Background())
		if c.isDead() || c.parted(other) {
			return nil, nil, content.ErrUnavailable
		}
		return held, b, err
	}, nil
}

// wired is the origin's bucket at the end of a cable.
type wired struct {
	*mem.Bucket
	c *cable
}

func (w wired) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if err := w.c.away(); err != nil {
		return nil, err
	}
	return w.Bucket.Get(ctx, key, r)
}

func (w wired) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (info bucket.Info, err error) {
	err = w.c.change(func() (err error) {
		info, err = w.Bucket.Put(ctx, key, body, cond)
		return err
	})
	if err != nil {
		info = bucket.Info{}
	}
	return info, err
}

func (w wired) Delete(ctx context.Context, key string) error {
	return w.c.change(func() error { return w.Bucket.Delete(ctx, key) })
}

func (w wired) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	if err := w.c.away(); err != nil {
		return func(yield func(bucket.Info, error) bool) { yield(bucket.Info{}, err) }
	}
	return w.Bucket.List(ctx, prefix, after)
}

// ledger is the registry of who reaches the origin's catalog.
type ledger struct{ *catalog.Catalog }

func (l ledger) get(ctx context.Context, kind content.Kind, name string) (catalog.Record, error) {
	r, err := l.Get(ctx, kind, name)
	if err == nil && r.Tombstone {
		err = fmt.Errorf("%s %q: %w: it was deleted", kind, name, content.ErrNotFound)
	}
	return r, err
}

func (l ledger) Volume(ctx context.Context, name string) (catalog.Record, error) {
	return l.get(ctx, content.KindVolume, name)
}

func (l ledger) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	return l.Volume(ctx, name)
}

func (l ledger) Snapshot(ctx context.Context, name string) (catalog.Record, error) {
	return l.get(ctx, content.KindSnapshot, name)
}

func (l ledger) list(ctx context.Context, kind content.Kind, prefix string) (out []catalog.Record) {
	for r, err := range l.List(ctx, kind, prefix, "") {
		if err == nil && !r.Tombstone && strings.HasPrefix(r.Name, prefix) {
			out = append(out, r)
		}
	}
	return out
}

func (l ledger) Volumes(ctx context.Context) []catalog.Record {
	return l.list(ctx, content.KindVolume, "")
}

func (l ledger) Snapshots(ctx context.Context, volume string) []catalog.Record {
	if volume != "" {
		volume += "@"
	}
	return l.list(ctx, content.KindSnapshot, volume)
}

func (l ledger) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Farm = testFarm
	return l.Catalog.Commit(ctx, ch)
}

func (l ledger) Delete(ctx context.Context, base catalog.Record) error {
	_, err := l.Catalog.Commit(ctx, catalog.Change{Kind: base.Kind, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}
