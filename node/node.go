package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance"
	"github.com/grangemesh/grange/node/leases"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/mounts"
	"github.com/grangemesh/grange/node/oci"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/profile"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/node/upkeep"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// stopTimeout bounds what a stop waits for.
const stopTimeout = 15 * time.Second

// Node is one member. Use: New, then Run.
type Node struct {
	Operations *operations.Operations
	Names      *records.Names
	Images     *images.Images
	Volumes    *volumes.Volumes  // nil in a seed
	Mounts     *mounts.Mounts    // nil in a seed
	Instances  *instance.Hub     // nil in a seed
	Profiles   *profile.Profiles // nil in a seed
	Door       *oci.Door         // nil without --oci
	leases     *leases.Leases    // nil in a seed
	Membership *membership.Membership
	Boots      *boots.Boots
	Upkeep     *upkeep.Upkeep
	cfg        Config
	codec      *content.Codec
	unlock     func() error
	undo       []func() error // what New has opened
	identity   trust.PrivateKey
	signer     trust.Signer
	verifier   *trust.Verifier
	cache      *cache.Cache
	origin     *origin
	swarm      *swarm.Swarm
	farm       *farm.Farm // nil when the node stands alone
	farmless   error      // why it could not gossip, where volumes are served all the same
	exchange   *exchange.Exchange
	peers      *identity.Ledger // who has proved to be whom, and who is shut out
	fetch      *fetch.Fetcher
	held       *holders.Store  // for other members' volumes; nil in a seed
	allowance  *seed.Allowance // what a seed may send; nil in others, which send all
	started    time.Time
	fresh      bool // the data folder was nobody's
	avoidable  avoidable
	returned   atomic.Int64 // times that the origin, or the farm, was gone and is back
	awaited    bool         // somebody waits for volumes that are on disk here

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
	n.Operations = operations.New(cfg.Log, cfg.Now)
	steps := []func(context.Context) error{n.look, n.openDir, n.tryFirst, n.openMember, n.openCache, n.openAllowance, n.openNetwork}
	serves := servicesOf(cfg.Role)
	if serves.origin {
		steps = append(steps, func(ctx context.Context) error { return n.unlessAwaited("its origin", n.origin.open(ctx)) })
	}
	steps = append(steps, n.begin, n.openFarm, n.openBoots, n.openNames, n.openUpkeep)
	if serves.volumes {
		steps = append(steps, n.openVolumes, n.openMounts, n.openInstances, n.openProfiles, n.openLeases, n.openDoor)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

func (n *Node) openCache(context.Context) (err error) {
	n.cache, err = cache.Open(cache.Config{Dir: filepath.Join(n.cfg.Dir, "cache"), Quota: n.cfg.Quota, Now: n.cfg.Now, Log: n.cfg.Log})
	if err != nil {
		return err
	}
	n.undo = append(n.undo, n.cache.Close)
	if s := n.cache.Stats(); s.Limit < s.Quota {
		n.cfg.Log.Warn("the disk has no room for all of the cache's quota", "quota", s.Quota, "room", s.Limit)
	}
	return nil
}

// openNames opens what is known of names, and the images that they stand for.
func (n *Node) openNames(context.Context) (err error) {
	n.Names, err = records.New(records.Config{
		Dir: filepath.Join(n.cfg.Dir, "records"), Reader: n.origin.records, Writer: n.origin.writer, Lost: n.origin.lost,
		Verifier: n.verifier, Signer: n.signer, Ask: n.askRecord, AskLead: n.askLead, Think: n.fetch.Think, Submit: n.submit, Holds: n.cache.Has, Learn: n.learn, Forget: n.fetch.Forget,
		Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.undo = append(n.undo, n.Names.Close)
	n.Images = images.New(images.Config{
		Dir: n.cfg.Dir, Names: n.Names, Fetcher: n.fetch, Boots: n.Boots, Cache: n.cache, Operations: n.Operations,
		Self: n.swarm.ID().String(), Follow: n.cfg.Follow, Matching: n.matching, Mesh: n.meshSize, Farm: n.farmMates, Call: n.callID, Holder: n.holder,
		Readable: n.origin.readable, Writable: n.origin.writable, Suspect: n.origin.suspect, Target: n.origin.beside,
		Signer: n.signer, Verifier: n.verifier, Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return nil
}

// close undoes what New did, when it failed midway.
func (n *Node) close() (err error) {
	for _, undo := range slices.Backward(n.undo) {
		err = errors.Join(err, undo())
	}
	return err
}

// part is what runs until its context ends.
type part = func(context.Context) error

// Run serves until ctx ends, then stops the parts from the top down: first what a
// caller puts above the node, such as its API, and the operations, then the volumes,
// which drain while the fetcher still brings in what they wait for. When the cause is
// volumes.ErrHandover the users of disks wait from then on, and what is below ends
// with the process, which has to become another.
func (n *Node) Run(ctx context.Context, above ...func(context.Context) error) error {
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	parts := []part{n.swarm.Run, n.exchange.Run, n.fetch.Run, n.cache.Run, n.Membership.Run, n.origin.watch, n.keepHeld, n.keepAllowance, n.followPlaces, n.keepWarned}
	if n.farm != nil {
		parts = append(parts, n.farm.Run, n.followFarm)
	}
	lower, below := errgroup.WithContext(below)
	for _, run := range parts {
		lower.Go(func() error { return run(below) })
	}
	context.AfterFunc(below, func() { // a part below that fails ends the node
		if ctx.Err() == nil {
			n.cfg.Log.Error("a part of the node has failed; stopping")
		}
	})
	above = append(slices.Clip(above), n.runOperations, n.keepSingle, n.Boots.Run, n.Images.Run, n.Upkeep.Run, n.Mounts.Run, n.Instances.Run, n.Door.Run, n.leases.Run, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-below.Done():
			return context.Cause(below)
		}
	})
	err := n.runVolumes(ctx, above)
	if errors.Is(context.Cause(ctx), volumes.ErrHandover) { // disks wait: what is below is not waited for
		return errors.Join(err, n.Membership.Save(), n.cache.Close())
	}
	stopBelow()
	return errors.Join(err, lower.Wait(), n.Names.Close(), n.closeAllowance(), n.unlock())
}

// runVolumes serves the volumes until all that is above them has stopped.
func (n *Node) runVolumes(ctx context.Context, above []part) error {
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	if n.Volumes != nil {
		group.Go(func() error { return n.Volumes.Run(serving) })
	}
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

// Collectors returns the metrics of all parts.
func (n *Node) Collectors() []prometheus.Collector {
	out := slices.Concat(n.cache.Collectors(), n.fetch.Collectors(), n.swarm.Collectors(), n.exchange.Collectors(), n.Names.Collectors(), n.origin.collectors(), n.Upkeep.Collectors(), n.Boots.Collectors(), n.Door.Collectors(), []prometheus.Collector{seen{n}})
	if n.farm != nil {
		out = append(out, n.farm.Collectors()...)
	}
	if n.Volumes != nil {
		out = append(out, n.Volumes.Collectors()...)
	}
	if n.Instances != nil {
		out = append(out, n.Instances.Collectors()...)
	}
	return out
}
