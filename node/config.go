// Package node is one member of a mesh: it joins the three wings. It keeps the
// member's identity, resolves names, imports images, and holds the volumes that
// are attached here. Programs that choose implementations (cmd/grange, the
// simulations) build one with New and call Run.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/oci"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/node/spans"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// FarmDefault is the farm of a founding node that names none.
	FarmDefault = "main"
	// ListenDefault is where members connect when nothing is said: QUIC beside TCP, which
	// alone gets through most NATs.
	ListenDefault = "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001,/ip4/0.0.0.0/udp/4001/quic-v1,/ip6/::/udp/4001/quic-v1"
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
	// OriginLimits are what this node may ask of each of them.
	OriginLimits budget.Limits
	// Join is a token; empty founds a mesh when Dir is new.
	Join string
	// Role is what the node is run as, which chooses its services; zero is trust.RoleNode.
	Role trust.Role
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
	// Terms are what a seed may send.
	Terms seed.Terms
	// Quota bounds the cache, in bytes.
	Quota int64
	// Follow are the names that are kept warm.
	Follow []follow.Pattern
	// NoOrigin are the names whose content is read from members alone: of images and tags,
	// and where no kind is said of volumes.
	NoOrigin []follow.Pattern
	// OCI are the terms of the door for container runtimes.
	OCI oci.Terms
	// IOTimeout is how long a guest's read waits for a source to come back; zero is
	// setup.IOTimeoutDefault.
	IOTimeout time.Duration
	// NBD opens what volumes are served on over NBD, of which the first listener is told
	// to clients; nil is a socket in Dir.
	NBD func(context.Context) (nbd.Config, error)
	// UBLK configures the volumes' block devices; its Owner is the node's affair. Flusher
	// says why they may hang when memory is short; nil if they don't.
	UBLK      ublk.Config
	Flusher   error
	Instances Instances
	Upkeep    Upkeep
	// Spans are told what reads wait for; nil is not.
	Spans *spans.Spans
	// Version is shown to users.
	Version string
	Now     func() time.Time
	Log     *slog.Logger
}

// noOrigin reports whether the origin is not to be read for what a name stands for.
func (c Config) noOrigin(as content.Ref) bool {
	return slices.ContainsFunc(c.NoOrigin, func(p follow.Pattern) bool { return p.Match(as.Kind, as.Name) })
}

func (c Config) withDefaults() (Config, error) {
	c.Role = cmp.Or(c.Role, trust.RoleNode)
	if c.Dir == "" || c.OpenOrigin == nil && servicesOf(c.Role).origin {
		return c, errors.New("node: Config needs a Dir and OpenOrigin")
	}
	if c.Role != trust.RoleNode && c.Role != trust.RoleSeed {
		return c, fmt.Errorf("node: %w: it is run as a node or a seed, not as %q", content.ErrInvalid, c.Role)
	}
	if len(c.Listen) == 0 {
		c.Listen = strings.Split(ListenDefault, ",")
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
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c, nil
}

// originURL is the first --origin, or the folder in --data that stands in for
// one on a single host.
func (c Config) originURL() string {
	if len(c.Origins) > 0 {
		return c.Origins[0]
	}
	return "file://" + filepath.ToSlash(filepath.Join(c.Dir, "origin"))
}

// services are what a node does beside passing on what it has of others' content.
type services struct {
	// origin is opened, with the credentials of this host: what a node without one knows of names, and all chunks, it has
	// from members, and it publishes nothing, neither for itself nor for others.
	origin bool
	// volumes are served to this host, trees shown, and instances run; without, the node's Volumes and the like are nil.
	volumes bool
}

// servicesOf is where a role chooses.
func servicesOf(role trust.Role) services {
	if role == trust.RoleSeed {
		return services{}
	}
	return services{origin: true, volumes: true}
}
