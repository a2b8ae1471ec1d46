package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/debug"
	"github.com/grangemesh/grange/cmd/grange/doctor"
	"github.com/grangemesh/grange/cmd/grange/supervise"
	"github.com/grangemesh/grange/cmd/grange/traces"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/gauges"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/spans"
)

// memberFlags are of the commands that run a member of the mesh.
type memberFlags struct {
	Join      *string    `help:"Token of the mesh to join, when --data is new: @FILE has it, - reads it from the standard input; else the credential grange.token of systemd, if there is one. A token that stands here itself is taken off the command line, where others could see it for a moment." placeholder:"@FILE"`
	Name      string     `help:"What other members are shown of this one; the host's name when not given."`
	Listen    []string   `help:"Where members connect; port 4001 of all addresses, by TCP and QUIC, when not given." placeholder:"MULTIADDR,…"`
	Announce  []string   `help:"Where members reach this node from outside, beside the addresses that it has: those of a port forward, or of a 1:1 NAT." placeholder:"MULTIADDR,…"`
	Bootstrap []string   `help:"Members to begin with, beside those of the token." placeholder:"MULTIADDR,…"`
	API       string     `name:"api" help:"Serve the API on an address too; TLS unless on loopback." placeholder:"HOST:PORT"`
	Quota     units.Size `help:"How much of the disk the cache may take." default:"20GiB"`
	Memory    units.Size `help:"How much memory this node aims to take at most; else what its cgroup allows." placeholder:"SIZE"`
	Check     bool       `help:"Say whether a node would start so, and end." env:"-"`
	Debug     string     `help:"Serve profiles and variables of this process there, to whoever asks: on loopback, where no host is said." placeholder:"[HOST]:PORT"`
	Traces    string     `help:"Send traces of reads, and of requests of the API, to this collector of OpenTelemetry, by OTLP over HTTP; the environment's OTEL_* say what else there is to say." placeholder:"URL"`
	logFlags
	followFlags

	recent *recent // of the log

	handover <-chan os.Signal // asks for one
}

// BeforeReset listens to signals before the config file is read.
func (c *memberFlags) BeforeReset() error {
	c.handover = hearEarly()
	return nil
}

// config begins the configuration of a member, and what has to be done before.
func (c *memberFlags) config(app *cli, std ask.Stdio) (cfg node.Config, err error) {
	if _, _, err := net.SplitHostPort(c.API); c.API != "" && err != nil {
		return cfg, fmt.Errorf("%w: --api %q: want HOST:PORT", ask.ErrUsage, c.API)
	}
	if c.Traces != "" {
		if err := traces.Check(c.Traces); err != nil {
			return cfg, fmt.Errorf("%w: %w", ask.ErrUsage, err)
		}
	}
	if c.Debug != "" {
		if c.Debug, err = debug.Address(c.Debug); err != nil {
			return cfg, fmt.Errorf("%w: %w", ask.ErrUsage, err)
		}
	}
	if !c.Check {
		if err := c.hideToken(app.Data); err != nil {
			return cfg, err
		}
	}
	token, err := c.token(app.Data, std)
	if err != nil {
		return cfg, err
	}
	c.recent = new(recent)
	log := c.open(app, std.Err, c.recent)
	return node.Config{
		Dir: app.Data, Join: token, Name: c.Name, Listen: c.Listen, Announce: c.Announce, Bootstrap: c.Bootstrap,
		Quota: int64(c.Quota), Follow: c.Follow, Version: version(), Log: log,
	}, limitMemory(c.Memory, log)
}

// couldServe fails if the API, or what is for debugging, can't have its address, before the member is anything.
func (c *memberFlags) couldServe(ctx context.Context, dir string) error {
	for _, door := range [][2]string{{"--api", c.API}, {"--debug", c.Debug}} {
		if door[1] == "" || membership.In(dir) {
			continue
		}
		if err := doctor.CouldListen(ctx, "tcp", door[1]); err != nil {
			return fmt.Errorf("%s %s: %w", door[0], door[1], err)
		}
	}
	return nil
}

// debugging serves profiles and variables where --debug says, until ctx ends. A node does
// without where somebody else has the address.
func (c *memberFlags) debugging(log *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		if c.Debug == "" {
			return nil
		}
		var config net.ListenConfig
		l, err := config.Listen(ctx, "tcp", c.Debug)
		if err != nil {
			log.Error("nothing is served at --debug", "err", err)
			return nil
		}
		log.Info("profiles are served", "at", "http://"+l.Addr().String()+"/debug/pprof/")
		if debug.Open(c.Debug) {
			log.Warn("others than this host's users may read this process's memory profiles at --debug, and keep it busy", "address", c.Debug)
		}
		return debug.Serve(ctx, l)
	}
}

func (c *memberFlags) serve(ctx context.Context, last lastCall, cfg node.Config, doors *doors) error {
	log := cfg.Log
	watch, err := supervise.New(cfg.Dir, log)
	if err != nil {
		return err
	}
	defer watch.Beside()()
	if c.Traces != "" {
		to, stop, err := traces.Open(ctx, traces.Config{URL: c.Traces, Version: cfg.Version, Node: cfg.Name, Log: log})
		if err != nil {
			return err
		}
		defer stop()
		cfg.Spans = spans.New(to)
	}
	n, err := node.New(ctx, cfg)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled) {
		return nil // it was told to stop before it served
	}
	if err != nil {
		return err
	}
	if cfg.Flusher != nil && n.Volumes != nil && n.Volumes.NoDisks() == nil {
		log.Warn("block devices are at risk", "why", cfg.Flusher)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics.MustRegister(n.Collectors()...)
	metrics.MustRegister(gauges.New(gauges.Config{Node: n, Dir: cfg.Dir, Certificates: map[string]string{"api": filepath.Join(cfg.Dir, api.CertificateName), "nbd": doors.certificate}, Now: time.Now}))
	settings := api.Config{Node: n, Dir: cfg.Dir, Address: c.API, Metrics: metrics, Recent: c.recent.text, Spans: cfg.Spans, Log: log}
	server := api.New(settings)
	err = server.Listen(ctx)
	if err != nil && c.API != "" && n.Awaited() {
		log.Error("this node's volumes are served without --api", "err", err)
		settings.Address = ""
		server = api.New(settings)
		err = server.Listen(ctx)
	}
	if err != nil {
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, n.Run(stopped))
	}
	watch.Serving()
	ctx, handover := awaitHandover(ctx, last, c.handover, watch, log)
	defer context.AfterFunc(ctx, func() { watch.Ending(context.Cause(ctx)) })()
	self := n.Self()
	log.Info("serving", "node", self.ID, "mesh", self.Mesh, "farm", self.Farm, "role", self.Role, "listen", self.Addrs, "nbd", doors.addresses(), "data", cfg.Dir)
	if err = n.Run(ctx, server.Run, c.debugging(log)); err != nil {
		err = fmt.Errorf("node stopped: %w", err)
	}
	log.Info("stopped")
	return handover(errors.Join(err, doors.leave(ctx)))
}

// credentialName is the join token's among what a service manager hands over.
const credentialName = "grange.token"

// credential says where the service manager has put a join token, as --join does; nil if it has none.
func credential() *string {
	path := filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), credentialName)
	if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
		return nil
	}
	path = "@" + path
	return &path
}

// token returns the join token: --join has it, or where it is, @FILE or - for standard
// input. A member needs none: a removed file, or input, does not keep it from starting.
func (c *memberFlags) token(dir string, std ask.Stdio) (string, error) {
	join := c.Join
	if join == nil {
		join = credential()
	}
	if join == nil {
		return "", nil
	}
	given, member := *join, membership.In(dir)
	token := given
	var err error
	switch path, file := strings.CutPrefix(given, "@"); {
	case given == ask.FromStdin && member:
		return "", nil
	case given == ask.FromStdin || file:
		token, err = std.ReadSecret(path)
	}
	if (err != nil || token == "") && member && given != "" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: --join %s: %w", ask.ErrUsage, given, err)
	}
	if token == "" {
		return "", fmt.Errorf("%w: --join: the token is empty; a founding node goes without the flag", ask.ErrUsage)
	}
	return token, nil
}

// withoutToken returns the arguments with - for the token; false if it is not there.
func withoutToken(args []string, token string) ([]string, bool) {
	out := make([]string, len(args))
	found := false
	for i, a := range args {
		switch a {
		case token:
			a = ask.FromStdin
		case "--join=" + token:
			a = "--join=" + ask.FromStdin
		}
		found = found || a != args[i]
		out[i] = a
	}
	return out, found
}

// hideToken takes a token off the command line, where all users of the host can see it: the process begins anew, under the same
// ID, and reads the token from its standard input. It returns if there is nothing to hide, or it can't be done here.
func (c *memberFlags) hideToken(dir string) error {
	if c.Join == nil || *c.Join == ask.FromStdin || *c.Join == "" || strings.HasPrefix(*c.Join, "@") {
		return nil
	}
	args, found := withoutToken(os.Args, *c.Join)
	if !found { // it came from the environment, or a file
		return nil
	}
	if err := membership.Fits(dir, *c.Join); err != nil { // a member will not read it
		return err
	}
	return again(args, *c.Join)
}

const (
	// memoryShare of what the node may take is for the Go heap and its stacks; the
	// rest is for what the runtime does not count, such as the maps of files.
	memoryShare = 0.9
	// memoryMin is the least that --memory may say: less is garbage collection alone.
	memoryMin = 128 << 20
)

// limitMemory has the garbage collector keep the process within --memory, or else its
// cgroup's limit, if there is one. GOMEMLIMIT in the environment comes before both.
func limitMemory(limit units.Size, log *slog.Logger) error {
	provider := memlimit.FromCgroup
	switch {
	case limit != 0 && limit < memoryMin:
		return fmt.Errorf("%w: --memory %s: want at least %s", ask.ErrUsage, units.Bytes(int64(limit)), units.Bytes(memoryMin))
	case limit != 0:
		provider = memlimit.Limit(uint64(limit))
	}
	got, err := memlimit.Set(memlimit.WithProvider(provider), memlimit.WithRatio(memoryShare))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported), err == nil && got == math.MaxInt64:
	case err != nil:
		log.Debug("the memory limit of this node's cgroup is not known; --memory gives one", "err", err)
	default:
		log.Info("memory is limited", "heap", units.Bytes(got))
	}
	return nil
}
