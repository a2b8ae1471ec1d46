// Command grange is one member of a mesh, and the command line that asks it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/instance"
	"github.com/grangemesh/grange/cmd/grange/oci"
	"github.com/grangemesh/grange/cmd/grange/origin"
	"github.com/grangemesh/grange/cmd/grange/volume"
	"github.com/grangemesh/grange/node/images"
)

func main() {
	ctx, last := untilAsked()
	os.Exit(run(ctx, os.Args[1:], ask.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, last))
}

// lastCall reports whether the process has been asked to end, and gives the signals that
// ask for it back to the system: who asks later ends the process at once.
type lastCall func() bool

// untilAsked returns a context that ends when the process is asked to; a second time ends it at once.
func untilAsked() (context.Context, lastCall) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, asked := <-signals // one that came before the close too
		signal.Stop(signals)
		if asked {
			cancel()
		}
	}()
	return ctx, sync.OnceValue(func() bool {
		signal.Stop(signals) // which returns when no signal is on its way to the channel
		close(signals)
		<-done
		return ctx.Err() != nil
	})
}

// cli is every command with its flags: the one place that flags, environment
// (GRANGE_NAME for a flag --name) and the config file fill.
type cli struct {
	Config  configFile       `help:"YAML file of settings: the flags' names with their values; ${default} if it is there." placeholder:"FILE" default:"${config}" env:"GRANGE_CONFIG"`
	Data    string           `help:"Folder of this node's data." default:"${data}" type:"path" env:"GRANGE_DATA"`
	Verbose bool             `short:"v" help:"Log in detail."`
	JSON    bool             `name:"json" help:"Print the API's document, as JSON." env:"-"`
	Version kong.VersionFlag `help:"Print the version." env:"-"`

	Node      nodeCmd                 `cmd:"" help:"Run a node; on an empty --data without --join it founds a mesh."`
	Seed      seedCmd                 `cmd:"" help:"Run a volunteer's seed: it holds public images and serves them, and relays for members behind NATs, as far as its limits go."`
	Image     imageCmd                `cmd:"" help:"Publish and handle images."`
	Tree      treeCmd                 `cmd:"" help:"Publish and handle trees of files."`
	Volume    volume.Commands         `cmd:"" help:"Create and handle volumes."`
	Snapshot  volume.SnapshotCommands `cmd:"" help:"Handle snapshots of volumes."`
	Instance  instance.Commands       `cmd:"" help:"Provision and handle instances."`
	OCI       oci.Commands            `cmd:"" name:"oci" help:"Have container runtimes pull through this node."`
	Origin    origin.Commands         `cmd:"" help:"Look after the origin: delete what is dead there, check it, copy it, and say who needs it."`
	Cache     cacheCmd                `cmd:"" help:"Show and shrink this node's cache."`
	Operation operationCmd            `cmd:"" help:"Show and cancel long work."`
	CSI       csiCmd                  `cmd:"" name:"csi" help:"Serve volumes to Kubernetes, by the Container Storage Interface, over the node of this host."`
	Token     tokenCmd                `cmd:"" help:"Make and handle join tokens."`
	Mesh      meshCmd                 `cmd:"" help:"Show and handle the mesh."`
	Resolve   resolveCmd              `cmd:"" help:"Say what a name stands for."`
	Status    statusCmd               `cmd:"" help:"Say how the node stands; exits 0 once it is ready."`
	Why       volume.Why              `cmd:"" help:"Say what the slowest reads of a volume waited for."`
	Ping      pingCmd                 `cmd:"" help:"Say by what way another member is reached, and how fast it answers; by its exit code too."`
	Support   supportCmd              `cmd:"" help:"Gather what a report of a fault needs into one file, without secrets."`
	Doctor    doctorCmd               `cmd:"" help:"Look for what would stop a node from working here."`

	Completion completionCmd `cmd:"" help:"Print what has a shell complete commands, flags, and the names that the node knows."`
	Complete   completeCmd   `cmd:"" hidden:"" help:"Say what may stand next on a command line."`
	Manual     manualCmd     `cmd:"" hidden:"" help:"Write the manual pages."`
}

// run executes one command and returns its exit code: 0 done, 1 failed, 2 for nonsense.
func run(ctx context.Context, args []string, std ask.Stdio, last lastCall) int {
	var c cli
	code := -1
	parser, err := newParser(&c, std, kong.Exit(func(n int) { code = n }), kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(last))
	if err != nil {
		fmt.Fprintf(std.Err, "grange: %v\n", err)
		return 2
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if code >= 0 { // --help and --version have answered
		return code
	}
	if err != nil {
		ask.Complain(std.Err, fmt.Sprintf("%v\nsee `%s --help`", err, asFarAsUnderstood(err)))
		return 2
	}
	node := ask.Node{Data: c.Data, JSON: c.JSON}
	if !onCommandLine(command, "data") { // which comes before it
		node.Remote = os.Getenv("GRANGE_API")
	}
	std = std.Printable()
	if err = command.Run(&c, &node); err == nil {
		return 0
	}
	if said, ok := errors.AsType[verdict](err); ok {
		return int(said)
	}
	ask.Complain(std.Err, err.Error())
	if errors.Is(err, ask.ErrUsage) {
		return 2
	}
	return 1
}

// asFarAsUnderstood is the command that a line which makes no sense begins with.
func asFarAsUnderstood(err error) string {
	if parsing, ok := errors.AsType[*kong.ParseError](err); ok && parsing.Context != nil && parsing.Context.Selected() != nil {
		return "grange " + parsing.Context.Selected().Path()
	}
	return "grange"
}

// onCommandLine reports whether a flag was given there, not by environment or file.
func onCommandLine(command *kong.Context, flag string) bool {
	return slices.ContainsFunc(command.Path, func(p *kong.Path) bool {
		return p.Flag != nil && p.Flag.Name == flag && !p.Resolved
	})
}

// description is what --help begins with.
const description = `Peer-to-peer content distribution for server farms.

Commands ask the node of --data over its socket, or the one that GRANGE_API names, HOST:PORT or the path of a socket, with GRANGE_TOKEN, or the api.token of --data, and GRANGE_CERT, a copy of its api.crt. They exit with 0 when done, 1 when not, and 2 for a command line that makes no sense; ping with more.`

func newParser(c *cli, std ask.Stdio, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append([]kong.Option{
		kong.Name("grange"), kong.Description(description), kong.Writers(std.Out, std.Err),
		kong.Vars{"data": defaultData(), "config": defaultConfig(), "version": version(), "nbdsocket": nbd.SocketName, "formats": strings.Join(images.Formats(), ","), "formatlist": strings.Join(images.Formats(), ", ")}, kong.DefaultEnvars("GRANGE"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.Bind(std.Printable()),
	}, options...)...)
}

// defaultData is /var/lib/grange for root, else a folder in the user's home.
func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/grange"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "grange-data"
	}
	return filepath.Join(home, ".local", "share", "grange")
}

// defaultConfig is the config file that is read when none is named, if it is there.
func defaultConfig() string {
	if os.Geteuid() == 0 {
		return "/etc/grange/grange.yaml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "grange", "grange.yaml")
}

// version is what the build was stamped with, or the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return info.Main.Version + " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return info.Main.Version
}
