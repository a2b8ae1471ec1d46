package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node/images"
)

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// printable is std with commands' output as text.
func (s stdio) printable() stdio {
	return stdio{s.in, terminal.Printable{Writer: s.out}, terminal.Printable{Writer: s.err}}
}

// cli is every command with its flags: the one place that flags, environment
// (GRANGE_NAME for a flag --name) and the config file fill.
type cli struct {
	Config  configFile       `help:"YAML file of settings: the flags' names with their values; ${default} if it is there." placeholder:"FILE" default:"${config}" env:"GRANGE_CONFIG"`
	Data    string           `help:"Folder of this node's data." default:"${data}" type:"path" env:"GRANGE_DATA"`
	Verbose bool             `short:"v" help:"Log in detail."`
	JSON    bool             `name:"json" help:"Print the API's document, as JSON." env:"-"`
	Version kong.VersionFlag `help:"Print the version." env:"-"`

	Node      nodeCmd      `cmd:"" help:"Run a node; on an empty --data without --join it founds a mesh."`
	Image     imageCmd     `cmd:"" help:"Publish and handle images."`
	Volume    volumeCmd    `cmd:"" help:"Create and handle volumes."`
	Snapshot  snapshotCmd  `cmd:"" help:"Handle snapshots of volumes."`
	Cache     cacheCmd     `cmd:"" help:"Show and shrink this node's cache."`
	Operation operationCmd `cmd:"" help:"Show and cancel long work."`
	Token     tokenCmd     `cmd:"" help:"Make and handle join tokens."`
	Mesh      meshCmd      `cmd:"" help:"Show and handle the mesh."`
	Resolve   resolveCmd   `cmd:"" help:"Say what a name stands for."`
	Status    statusCmd    `cmd:"" help:"Say how the node stands; exits 0 once it is ready."`
	Doctor    doctorCmd    `cmd:"" help:"Look for what would stop a node from working here."`

	dataGiven bool // --data stands on the command line, so that it comes before GRANGE_API
}

// errUsage marks errors in the command line, which exit with 2.
var errUsage = errors.New("usage")

// run executes one command and returns its exit code: 0 done, 1 failed, 2 for nonsense.
func run(ctx context.Context, args []string, std stdio, last lastCall) int {
	var c cli
	code := -1
	parser, err := newParser(&c, std, kong.Exit(func(n int) { code = n }), kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(last))
	if err != nil {
		fmt.Fprintf(std.err, "grange: %v\n", err)
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
		complain(std.err, fmt.Sprintf("%v\nsee `%s --help`", err, asFarAsUnderstood(err)))
		return 2
	}
	c.dataGiven = onCommandLine(command, "data")
	std = std.printable()
	err = command.Run(&c)
	if err == nil {
		return 0
	}
	complain(std.err, err.Error())
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

// asFarAsUnderstood is the command that a line which makes no sense begins with.
func asFarAsUnderstood(err error) string {
	var parsing *kong.ParseError
	if errors.As(err, &parsing) && parsing.Context != nil && parsing.Context.Selected() != nil {
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

Commands ask the node of --data over its socket, or the one that GRANGE_API names, HOST:PORT or the path of a socket, with GRANGE_TOKEN, or the api.token of --data, and GRANGE_CERT, a copy of its api.crt. They exit with 0 when done, 1 when not, and 2 for a command line that makes no sense.`

// newParser returns a parser of command lines into c.
func newParser(c *cli, std stdio, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append([]kong.Option{
		kong.Name("grange"), kong.Description(description), kong.Writers(std.out, std.err),
		kong.Vars{"data": defaultData(), "config": defaultConfig(), "version": version(), "nbdsocket": nbd.SocketName, "formats": strings.Join(images.Formats(), ","), "formatlist": strings.Join(images.Formats(), ", ")}, kong.DefaultEnvars("GRANGE"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.Bind(std.printable()),
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
