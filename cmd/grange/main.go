// Command grange is one member of a mesh, and the command line that asks it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node/images"
)

func main() {
	ctx, last := untilAsked()
	os.Exit(run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}, last))
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
	Seed      seedCmd      `cmd:"" help:"Run a volunteer's seed: it holds public images and serves them, and relays for members behind NATs, as far as its limits go."`
	Image     imageCmd     `cmd:"" help:"Publish and handle images."`
	Tree      treeCmd      `cmd:"" help:"Publish and handle trees of files."`
	Volume    volumeCmd    `cmd:"" help:"Create and handle volumes."`
	Snapshot  snapshotCmd  `cmd:"" help:"Handle snapshots of volumes."`
	Cache     cacheCmd     `cmd:"" help:"Show and shrink this node's cache."`
	Operation operationCmd `cmd:"" help:"Show and cancel long work."`
	Token     tokenCmd     `cmd:"" help:"Make and handle join tokens."`
	Mesh      meshCmd      `cmd:"" help:"Show and handle the mesh."`
	Resolve   resolveCmd   `cmd:"" help:"Say what a name stands for."`
	Status    statusCmd    `cmd:"" help:"Say how the node stands; exits 0 once it is ready."`
	Why       whyCmd       `cmd:"" help:"Say what the slowest reads of a volume waited for."`
	Ping      pingCmd      `cmd:"" help:"Say by what way another member is reached, and how fast it answers; by its exit code too."`
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
	if err = command.Run(&c); err == nil {
		return 0
	}
	if said, ok := errors.AsType[verdict](err); ok {
		return int(said)
	}
	complain(std.err, err.Error())
	if errors.Is(err, errUsage) {
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

// remote is the address of a node that need not be on this host, or "".
func (c *cli) remote() string {
	if c.dataGiven {
		return ""
	}
	return os.Getenv("GRANGE_API")
}

// client asks the node of the data folder on the command line, over its socket, else
// GRANGE_API's, else that of the data folder set otherwise.
func (c *cli) client() (*client.Client, error) {
	return client.New(client.Config{Data: c.Data, Remote: c.remote(), Token: os.Getenv("GRANGE_TOKEN"), Certificate: os.Getenv("GRANGE_CERT")})
}

// ask sends in as JSON and reads the answer into out; either may be nil.
func (c *cli) ask(ctx context.Context, method, path string, in, out any) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	return to.Ask(ctx, method, path, in, out)
}

// request is one that the API is asked.
type request struct {
	method, path string
	body         any
}

// tell asks the API and prints its document with --json, else the text that is made of it, with columns where it has tabs.
func tell[T any](ctx context.Context, app *cli, std stdio, r request, text func(w io.Writer, v T)) error {
	var raw json.RawMessage
	if err := app.ask(ctx, r.method, r.path, r.body, &raw); err != nil {
		return err
	}
	return show(app, std, raw, text)
}

// list asks for a list, all of its pages, and prints it as tell does.
func list[T any](ctx context.Context, app *cli, std stdio, path string, text func(w io.Writer, v []T)) error {
	to, err := app.client()
	if err != nil {
		return err
	}
	raw, err := to.Pages(ctx, path)
	if err != nil {
		return err
	}
	return show(app, std, raw, text)
}

// show prints a document of the API; an empty one is of an answer without any.
func show[T any](app *cli, std stdio, raw json.RawMessage, text func(w io.Writer, v T)) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if app.JSON {
		_, err := fmt.Fprintf(std.out, "%s\n", raw)
		return err
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	var b strings.Builder
	text(&b, v)
	_, err := io.WriteString(std.out, terminal.Columns(b.String(), terminal.Width(std.out)))
	return err
}

// said prints one line when something was done that has no document.
func said(format string, args ...any) func(io.Writer, struct{}) {
	return func(w io.Writer, _ struct{}) { fmt.Fprintf(w, format+"\n", args...) }
}

// complain prints an error: each of several on its own line, wrapped on a terminal.
func complain(w io.Writer, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, terminal.Wrap("grange: "+strings.TrimSuffix(line, "\n"), terminal.Width(w)))
	}
}
