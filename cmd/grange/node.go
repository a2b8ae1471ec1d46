package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
)

type nodeCmd struct {
	Origin         []string  `help:"Where images live: s3://BUCKET/PREFIX?endpoint=…&region=…&path-style=true, file:///FOLDER, or https://HOST/PREFIX to read only. The first is the truth, the others are mirrors." placeholder:"URL" sep:"none"`
	Join           *string   `help:"Token of the mesh to join, when --data is new: @FILE has it, - reads it from the standard input. A token that stands here itself is taken off the command line, where others could see it for a moment." placeholder:"@FILE"`
	Name           string    `help:"What other members are shown of this one; the host's name when not given."`
	Farm           string    `help:"Farm of a node that founds a mesh; a joining one has it from its token."`
	FarmBind       string    `help:"Where to gossip inside the farm; without it the node stands alone." placeholder:"HOST:PORT"`
	FarmJoin       []string  `help:"Some neighbours of the farm." placeholder:"HOST:PORT,…"`
	Listen         []string  `help:"Where members connect." placeholder:"MULTIADDR,…" default:"/ip4/0.0.0.0/tcp/4001"`
	Bootstrap      []string  `help:"Members to begin with, beside those of the token." placeholder:"MULTIADDR,…"`
	API            string    `name:"api" help:"Serve the API on an address too; TLS unless on loopback." placeholder:"HOST:PORT"`
	Quota          size      `help:"How much of the disk the cache may take." default:"20GiB"`
	Memory         size      `help:"How much memory this node aims to take at most; else what its cgroup allows." placeholder:"SIZE"`
	UblkThreads    int       `help:"Threads that serve block devices; 0: one for two processors, at most 4."`
	UblkQueues     int       `help:"Queues of a block device; 0: as many as threads, at most 2."`
	UblkDepth      int       `help:"Requests in flight in each of them; 0: 64."`
	OriginRate     rate      `help:"Bytes a second that this node reads from the origin at most." placeholder:"SIZE/s"`
	OriginRequests frequency `help:"Requests a second that this node sends to the origin at most." placeholder:"N/s"`
	IoTimeout      span      `help:"How long a read of a volume waits for its bytes while the origin, and all who have them, are away; then its reader gets an error." default:"5m"`
}

// Run serves until ctx ends, or until the node hands over to its program's newest
// version.
func (c *nodeCmd) Run(ctx context.Context, app *cli, std stdio) error {
	if _, _, err := net.SplitHostPort(c.API); c.API != "" && err != nil {
		return fmt.Errorf("%w: --api %q: want HOST:PORT", errUsage, c.API)
	}
	if err := c.hideToken(app.Data); err != nil {
		return err
	}
	token, err := c.token(app.Data, std)
	if err != nil {
		return err
	}
	if len(c.FarmJoin) > 0 && c.FarmBind == "" {
		return fmt.Errorf("%w: --farm-join: neighbours are met only with --farm-bind", errUsage)
	}
	for _, origin := range c.Origin {
		if strings.Contains(origin, ",s3://") || strings.Contains(origin, ",file://") || strings.Contains(origin, ",https://") {
			return fmt.Errorf("%w: --origin %s: a URL may contain commas, so each has a flag of its own, or an item of a list in the config file", errUsage, origin)
		}
	}
	level := slog.LevelInfo
	if app.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: level}))
	if err := limitMemory(c.Memory, log); err != nil {
		return err
	}
	opener := originOpener{log: log, verbose: app.Verbose, rate: int64(c.OriginRate), requests: float64(c.OriginRequests)}
	flusher := becomeFlusher()
	n, err := node.New(ctx, node.Config{
		Dir: app.Data, Origins: c.Origin, OpenOrigin: opener.open, Join: token, Name: c.Name, Farm: c.Farm, FarmBind: c.FarmBind, FarmJoin: c.FarmJoin,
		Listen: c.Listen, Bootstrap: c.Bootstrap, Quota: int64(c.Quota), IOTimeout: time.Duration(c.IoTimeout), Version: version(), Log: log,
		UBLK: ublk.Config{Threads: c.UblkThreads, Queues: c.UblkQueues, Depth: c.UblkDepth},
	})
	if err != nil {
		return err
	}
	if flusher != nil && n.Volumes.NoDisks() == nil {
		log.Warn("block devices are at risk", "why", flusher)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics.MustRegister(n.Collectors()...)
	server := api.New(api.Config{Node: n, Dir: app.Data, Address: c.API, Flusher: flusher, Metrics: metrics, Log: log})
	if err := server.Listen(ctx); err != nil {
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, n.Run(stopped))
	}
	ctx, handover := awaitHandover(ctx, log)
	self := n.Self()
	log.Info("serving", "node", self.ID, "mesh", self.Mesh, "farm", self.Farm, "role", self.Role, "listen", self.Addrs, "data", app.Data)
	if err = n.Run(ctx, server.Run); err != nil {
		err = fmt.Errorf("node stopped: %w", err)
	}
	log.Info("stopped")
	return handover(err)
}
