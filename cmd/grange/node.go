package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/instance"
	"github.com/grangemesh/grange/cmd/grange/origin"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/bucket/web"
	"github.com/grangemesh/grange/origin/content"
)

type nodeCmd struct {
	Origin         []string        `help:"Where images live: s3://BUCKET/PREFIX?endpoint=…&region=… (and path-style=true), file:///FOLDER, or https://HOST/PREFIX to read only. The first is the truth, the others are mirrors." placeholder:"URL" sep:"none"`
	Farm           string          `help:"Farm of a node that founds a mesh; a joining one has it from its token."`
	FarmBind       string          `help:"Where to gossip inside the farm; without it the node stands alone." placeholder:"HOST:PORT"`
	FarmJoin       []string        `help:"Some neighbours of the farm; those on the LAN of --farm-bind are found without." placeholder:"HOST:PORT,…"`
	UblkThreads    int             `help:"Threads that serve block devices; 0: one for two processors, at most 4."`
	UblkQueues     int             `help:"Queues of a block device; 0: as many as threads, at most 2."`
	UblkDepth      int             `help:"Requests in flight in each of them; 0: 64."`
	OriginRate     units.Rate      `help:"Bytes a second that this node reads from the origin at most." placeholder:"SIZE/s"`
	OriginRequests units.Frequency `help:"Requests a second that this node sends to the origin at most." placeholder:"N/s"`
	IoTimeout      units.Span      `help:"How long a read of a volume waits for its bytes while the origin, and all who have them, are away; then its reader gets an error." default:"5m"`

	Instance instance.Flags `embed:"" prefix:"instance-"`
	Upkeep   origin.Flags   `embed:"" prefix:"origin-"`

	OCI         string     `name:"oci" help:"Serve container images on an address of loopback, as a mirror of registries; see grange oci configure." placeholder:"127.0.0.1:PORT"`
	OCIQuota    units.Size `name:"oci-quota" help:"How much of the disk their blobs may take." default:"20GiB"`
	OCIUpstream []string   `name:"oci-upstream" help:"Registries that images are brought in from, each with its URL if that is not https://NAME; all when not given." placeholder:"NAME[=URL],…"`

	NoOriginFallback []follow.Pattern `help:"Read these images and volumes from members alone, never from the origin: what no member has fails." placeholder:"NAME,image:NAME,tag:TAG,PATTERN,…"`

	memberFlags
	doorFlags
}

// Run serves until ctx ends, or the node hands over to its program's newest version.
func (c *nodeCmd) Run(ctx context.Context, app *cli, std ask.Stdio, last lastCall) error {
	if len(c.FarmJoin) > 0 && c.FarmBind == "" {
		return fmt.Errorf("%w: --farm-join: neighbours are met only with --farm-bind", ask.ErrUsage)
	}
	for _, url := range c.Origin {
		if strings.Contains(url, ",s3://") || strings.Contains(url, ",file://") || strings.Contains(url, ",https://") {
			return fmt.Errorf("%w: --origin %s: a URL may contain commas, so each has a flag of its own, or an item of a list in the config file", ask.ErrUsage, url)
		}
	}
	cfg, err := c.config(app, std)
	if err != nil {
		return err
	}
	log := cfg.Log
	doors, err := c.doors(app.Data)
	if err != nil {
		return err
	}
	defer doors.close()
	opener := originOpener{log: log, verbose: log.Enabled(ctx, slog.LevelDebug)}
	cfg.Origins, cfg.OpenOrigin, cfg.Farm, cfg.FarmBind, cfg.FarmJoin = c.Origin, opener.open, c.Farm, c.FarmBind, c.FarmJoin
	cfg.Instances, cfg.Upkeep = c.Instance.Config(), c.Upkeep.Config()
	cfg.Instances.Lower = instance.Lower(cfg.Dir)
	cfg.NoOrigin, cfg.OriginLimits = c.NoOriginFallback, budget.Limits{Requests: float64(c.OriginRequests), Bytes: int64(c.OriginRate)}
	if cfg.OCI, err = c.doorOfImages(); err != nil {
		return err
	}
	cfg.IOTimeout, cfg.NBD, cfg.UBLK = time.Duration(c.IoTimeout), doors.nbd, ublk.Config{Threads: c.UblkThreads, Queues: c.UblkQueues, Depth: c.UblkDepth}
	if c.Check {
		return node.Check(ctx, cfg)
	}
	if err := c.couldServe(ctx, app.Data); err != nil {
		return err
	}
	if err := doors.listen(ctx, app.Data, log); err != nil {
		return err
	}
	cfg.Flusher = becomeFlusher()
	return c.serve(ctx, last, cfg, doors)
}

// originOpener opens the bucket that an --origin names.
type originOpener struct {
	log     *slog.Logger
	verbose bool
}

// open counts next to the store: each try is a request, and one that is not sent is none.
// How often it is tried again, and in whose turn, is for the node to say.
func (o originOpener) open(ctx context.Context, text string) (bucket.Bucket, *bucket.Metrics, error) {
	b, err := o.openURL(ctx, text)
	if err != nil {
		return nil, nil, err
	}
	counted := bucket.WithMetrics(b)
	return bucket.Beside(bucket.Breaker(counted)), counted, nil
}

func (o originOpener) openURL(ctx context.Context, text string) (bucket.Bucket, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", content.ErrInvalid, err)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(filepath.FromSlash(u.Path)) {
			return nil, fmt.Errorf("%w: want file:///ABSOLUTE/FOLDER", content.ErrInvalid)
		}
		return dir.Open(ctx, filepath.FromSlash(u.Path), o.log)
	case "s3":
		l, err := s3.ParseURL(text)
		if err != nil {
			return nil, err
		}
		return s3.Open(ctx, s3.Config{Location: l, Verbose: o.verbose, Log: o.log})
	case "https", "http":
		return web.Open(text)
	}
	return nil, fmt.Errorf("%w: scheme %q; want s3, file or https, as in file:///folder", content.ErrInvalid, u.Scheme)
}
