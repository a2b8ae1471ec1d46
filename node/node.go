package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// FarmDefault is the farm of a founding node that names none.
	FarmDefault = "main"
	// ListenDefault is where members connect when nothing is said.
	ListenDefault = "/ip4/0.0.0.0/tcp/4001"
	// joinedWithin is how long a node with neighbours or bootstrap addresses waits
	// for one of them before it calls itself ready alone. It is most of the two
	// seconds that a restart may take.
	joinedWithin = 1800 * time.Millisecond
	// lockTimeout is how long a start waits for the end of a node before it that was
	// killed: its files close after it is gone to those who watch it.
	lockTimeout = 3 * time.Second
	// stopTimeout bounds what a stop waits for.
	stopTimeout = 15 * time.Second
	// TempDir in the data folder holds files of work that is under way; a start clears
	// it.
	TempDir = "tmp"
)

// Config is everything that a node is told. Zero fields are defaults.
type Config struct {
	// Dir is the node's data folder; one process may have it open.
	Dir string
	// Origins are URLs: the first is the truth, the rest mirrors to read from.
	Origins []string
	// OpenOrigin opens the bucket of a URL, with what counts the requests that are
	// sent to it, repeated ones too. It does not need to be reachable, and repeats
	// nothing by itself.
	OpenOrigin func(ctx context.Context, url string) (bucket.Bucket, *bucket.Metrics, error)
	// Join is a token; empty founds a mesh when Dir is new.
	Join string
	// Name is what other members are shown of this one; empty is the host's.
	Name string
	// Farm is the farm of a founding node; empty is FarmDefault.
	Farm string
	// FarmBind is HOST:PORT to gossip on; empty stands alone. FarmJoin are
	// neighbours' addresses.
	FarmBind string
	FarmJoin []string
	// Listen, Announce (where others reach it from outside) and Bootstrap are multiaddrs.
	Listen    []string
	Announce  []string
	Bootstrap []string
	// Quota bounds the cache, in bytes.
	Quota int64
	// IOTimeout is how long a guest's read waits for a source to come back; zero is
	// fetch.IOTimeoutDefault.
	IOTimeout time.Duration
	// NBD opens what volumes are served on over NBD, of which the first listener is told
	// to clients; nil is a socket in Dir.
	NBD func(context.Context) (nbd.Config, error)
	// UBLK configures the volumes' block devices; its Owner is the node's affair.
	UBLK ublk.Config
	// Version is shown to users.
	Version string
	Now     func() time.Time
	Log     *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.OpenOrigin == nil {
		return c, errors.New("node: Config needs a Dir and OpenOrigin")
	}
	if len(c.Listen) == 0 {
		c.Listen = []string{ListenDefault}
	}
	if c.NBD == nil {
		c.NBD = func(ctx context.Context) (nbd.Config, error) {
			l, err := nbd.Listen(ctx, "unix:"+filepath.Join(c.Dir, nbd.SocketName))
			return nbd.Config{Listeners: []net.Listener{l}}, err
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Node is one member. Use: New, then Run.
type Node struct {
	Operations *Operations
	Names      *records.Names
	Images     *Images
	Volumes    *volumes.Volumes
	Membership *membership.Membership

	cfg      Config
	codec    *content.Codec
	unlock   func() error
	identity trust.PrivateKey
	signer   trust.Signer
	verifier *trust.Verifier
	cache    *cache.Cache
	origin   *origin
	swarm    *swarm.Swarm
	farm     *farm.Farm // nil when the node stands alone
	farmless error      // why it could not gossip, where volumes are served all the same
	exchange *exchange.Exchange
	fetch    *fetch.Fetcher
	started  time.Time

	fresh    bool         // the data folder was nobody's
	returned atomic.Int64 // times that the origin, or the farm, was gone and is back

	awaited bool // somebody waits for volumes that are on disk here

	incarnation incarnation
	signed      []byte           // as it travels
	twins       chan incarnation // others of this identity, that are to be looked for
}

// New opens the data folder, joins or founds a mesh when it is new, and builds
// the parts; addresses that are in use and origins that can never work are found
// here, before a mesh is founded or a token spent. Volumes that somebody waits for are
// served all the same, without the parts that fail. What New returned is closed by Run.
func New(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, codec: content.NewCodec(), started: cfg.Now(), twins: make(chan incarnation, twinsMax)}
	n.Operations = NewOperations(cfg.Log, cfg.Now)
	for _, step := range []func(context.Context) error{n.look, n.openDir, n.tryFirst, n.openMember, n.openCache, n.openNetwork, n.openOrigin, n.begin, n.openFarm, n.openNames, n.openVolumes} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

func (n *Node) openDir(ctx context.Context) error {
	if err := durable.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	lock, err := durable.LockWithin(ctx, filepath.Join(n.cfg.Dir, "lock"), lockTimeout)
	if errors.Is(err, content.ErrConflict) {
		return fmt.Errorf("data folder %s: another grange has it open: %w", n.cfg.Dir, err)
	}
	if err != nil {
		return fmt.Errorf("data folder %s: %w; run the node as the user whose folder it is", n.cfg.Dir, err)
	}
	n.unlock = lock.Close
	temp := filepath.Join(n.cfg.Dir, TempDir)
	if files, _ := os.ReadDir(temp); n.fresh && len(files) > 0 { // as a --data of /, or of a home
		return fmt.Errorf("data folder %s: %w: it is no node's yet, and its folder %s, which a node clears, holds files of others; give an empty --data", n.cfg.Dir, content.ErrConflict, TempDir)
	}
	if err := os.RemoveAll(temp); err != nil { // what killed imports and exports have left
		return fmt.Errorf("data folder: %w", err)
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

func (n *Node) openCache(context.Context) (err error) {
	n.cache, err = cache.Open(cache.Config{Dir: filepath.Join(n.cfg.Dir, "cache"), Quota: n.cfg.Quota, Now: n.cfg.Now, Log: n.cfg.Log})
	if err != nil {
		return err
	}
	if s := n.cache.Stats(); s.Limit < s.Quota {
		n.cfg.Log.Warn("the disk has no room for all of the cache's quota", "quota", s.Quota, "room", s.Limit)
	}
	return nil
}

// openNetwork builds the swarm, the fetcher and the exchange, each of which knows
// the others, then opens the addresses; nobody is answered before Run.
func (n *Node) openNetwork(context.Context) (err error) {
	cfg := swarm.Config{
		Identity: n.identity, Mesh: n.verifier.Mesh(), Listen: n.cfg.Listen, Announce: n.cfg.Announce, Bootstrap: slices.Concat(n.cfg.Bootstrap, n.Membership.State().Bootstrap),
		PeersFile: filepath.Join(n.cfg.Dir, peersFile), Log: n.cfg.Log,
		Proved: func(id peer.ID) bool { _, ok := n.exchange.Identity(id); return ok },
		Prove:  func(ctx context.Context, id peer.ID) bool { _, err := n.exchange.Meet(ctx, id); return err == nil },
	}
	if n.swarm, err = swarm.New(cfg); err != nil {
		if err := n.unlessAwaited("its addresses", err); err != nil {
			return err
		}
		cfg.Listen, cfg.Bootstrap = nil, nil
		n.swarm, err = swarm.New(cfg)
	}
	if err != nil {
		return err
	}
	n.origin = newOrigin(n)
	n.fetch, err = fetch.New(fetch.Config{
		Cache: n.cache, Members: neighbours{n}, Swarm: n.swarm, Origin: n.origin.reader, Self: n.swarm.ID(),
		Identity: n.Membership.Identity(), Verifier: n.verifier, Announce: n.Membership.Announce,
		Introduce: n.introduced, IOTimeout: n.cfg.IOTimeout, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.exchange, err = exchange.New(exchange.Config{
		Host: n.swarm.Host(), Verifier: n.verifier, Chain: n.Membership.State().Chain, Server: n.fetch, Answerer: answerer{n},
		OnViolation: n.violated, OnProved: n.swarm.Welcome, OnLost: n.swarm.Dismiss, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.fetch.Connect(n.exchange)
	n.Membership.Connect(reach{n.exchange, n.swarm})
	n.refuseRevoked()
	return n.unlessAwaited("an address to listen on", n.swarm.Listen())
}

// openFarm begins to gossip, if this node has neighbours at all.
func (n *Node) openFarm(context.Context) error {
	if n.cfg.FarmBind == "" {
		return nil
	}
	keys := n.Membership.Gossip()
	err := n.checkFarm()
	var f *farm.Farm
	if err == nil {
		f, err = farm.New(farm.Config{
			Signer: n.signer, Verifier: n.verifier, Bind: n.cfg.FarmBind, Join: n.cfg.FarmJoin,
			Key: keys[0], Addrs: n.swarm.Addrs(), Name: n.nameOf, Now: n.cfg.Now, Log: n.cfg.Log,
		})
	}
	if err == nil {
		err = f.Start()
	}
	if n.farmless = err; err != nil {
		return n.unlessAwaited("its farm", err)
	}
	n.farm = f
	return f.Rotate(keys[len(keys)-1])
}

func (n *Node) openOrigin(ctx context.Context) error {
	return n.unlessAwaited("its origin", n.origin.open(ctx))
}

// unlessAwaited drops the error of a part that volumes can be served without, if
// somebody waits for those of this node: of disks that nobody serves, their users hang.
func (n *Node) unlessAwaited(part string, err error) error {
	if err == nil || !n.awaited {
		return err
	}
	n.cfg.Log.Error("this node's volumes are served without "+part, "err", err)
	return nil
}

// Awaited reports whether somebody waited for volumes of this node when it started.
func (n *Node) Awaited() bool { return n.awaited }

func (n *Node) volumesDir() string { return filepath.Join(n.cfg.Dir, "volumes") }

func (n *Node) openNames(context.Context) (err error) {
	n.Images = &Images{n: n}
	n.Names, err = records.New(records.Config{
		Dir: filepath.Join(n.cfg.Dir, "records"), Reader: n.origin.records, Writer: n.origin.writer, Lost: n.origin.lost,
		Verifier: n.verifier, Signer: n.signer, Ask: n.askRecord, AskLead: n.askLead, Think: n.fetch.Think, Submit: n.submit, Holds: n.cache.Has, Learn: n.learn, Forget: n.fetch.Forget,
		Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}

func (n *Node) openVolumes(ctx context.Context) (err error) {
	n.Volumes, err = volumes.New(ctx, volumes.Config{
		Dir: n.volumesDir(), NBD: n.cfg.NBD,
		UBLK: n.cfg.UBLK, Self: n.identity.Public(), NodeID: n.swarm.ID().String(), Farm: n.Farm(), Holder: n.holder, Returned: n.returned.Load, Library: library{n}, Registry: registry{n}, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}

// close undoes what New did, when it failed midway.
func (n *Node) close() error {
	var errs []error
	if n.swarm != nil {
		errs = append(errs, n.swarm.Close())
	}
	if n.farm != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		errs = append(errs, n.farm.Run(ctx))
	}
	if n.Names != nil {
		errs = append(errs, n.Names.Close())
	}
	if n.cache != nil {
		errs = append(errs, n.cache.Close())
	}
	if n.unlock != nil {
		errs = append(errs, n.unlock())
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, then stops the parts from the top down: first what a
// caller puts above the node, such as its API, and the operations, then the volumes,
// which drain while the fetcher still brings in what they wait for. When the cause is
// volumes.ErrHandover the users of disks wait from then on, and what is below ends
// with the process, which has to become another.
func (n *Node) Run(ctx context.Context, above ...func(context.Context) error) error {
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	lower, below := errgroup.WithContext(below)
	lower.Go(func() error { return n.swarm.Run(below) })
	lower.Go(func() error { return n.exchange.Run(below) })
	lower.Go(func() error { return n.fetch.Run(below) })
	lower.Go(func() error { return n.cache.Run(below) })
	lower.Go(func() error { return n.Membership.Run(below) })
	lower.Go(func() error { n.origin.watch(below); return nil })
	if n.farm != nil {
		lower.Go(func() error { return n.farm.Run(below) })
		lower.Go(func() error { n.followFarm(below); return nil })
	}
	context.AfterFunc(below, func() { // a part below that fails ends the node
		if ctx.Err() == nil {
			n.cfg.Log.Error("a part of the node has failed; stopping")
		}
	})
	above = append(slices.Clip(above), n.runOperations, n.keepSingle, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-below.Done():
			return context.Cause(below)
		}
	})
	err := n.runVolumes(ctx, above)
	if errors.Is(context.Cause(ctx), volumes.ErrHandover) {
		// What is below is not waited for: disks wait. A cache that is closed is opened sooner.
		return errors.Join(err, n.Membership.Save(), n.cache.Close())
	}
	stopBelow()
	return errors.Join(err, lower.Wait(), n.Names.Close(), n.unlock())
}

// runVolumes serves the volumes until all that is above them has stopped.
func (n *Node) runVolumes(ctx context.Context, above []func(context.Context) error) error {
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Volumes.Run(serving) })
	group.Go(func() error {
		defer func() { stop(context.Cause(ctx)) }()
		upper, ctx := errgroup.WithContext(ctx)
		for _, run := range above {
			upper.Go(func() error { return run(ctx) })
		}
		return upper.Wait()
	})
	return group.Wait()
}

func (n *Node) runOperations(ctx context.Context) error {
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return n.Operations.Close(ctx)
}

// Version returns the version that the node was built as.
func (n *Node) Version() string { return n.cfg.Version }

// Started returns when the node was started.
func (n *Node) Started() time.Time { return n.started }

// Farm returns the name of this node's farm.
func (n *Node) Farm() string { return n.Membership.Identity().Farm }

// Collectors returns the metrics of all parts.
func (n *Node) Collectors() []prometheus.Collector {
	out := append(n.cache.Collectors(), n.fetch.Collectors()...)
	out = append(out, n.swarm.Collectors()...)
	if n.farm != nil {
		out = append(out, n.farm.Collectors()...)
	}
	out = append(out, n.exchange.Collectors()...)
	out = append(out, n.Volumes.Collectors()...)
	out = append(out, n.Names.Collectors()...)
	return append(out, n.origin.collectors()...)
}
