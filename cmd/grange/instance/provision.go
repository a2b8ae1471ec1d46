package instance

import (
	"context"
	"fmt"
	"time"

	"github.com/alecthomas/kong"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/instance/terms"
)

// provisionCmd has its flags from the command line alone: the environment is a node's, or a workload's.
type provisionCmd struct {
	named
	Arguments []string `arg:"" optional:"" name:"argument" help:"Behind --: the program and its arguments, as they are."`

	Runtime      string     `env:"-" enum:",process,vm" default:"" help:"vm, of an image, volume or snapshot, else process." placeholder:"process|vm"`
	From         string     `env:"-" help:"What it begins as: tree:NAME, or for a vm image:NAME, volume:NAME or snapshot:NAME@N; an empty folder when not given." placeholder:"REF"`
	Command      string     `env:"-" help:"The command as one text, for /bin/sh -c to exec." placeholder:"TEXT"`
	Env          []string   `env:"-" sep:"none" help:"A variable of its environment; may be repeated." placeholder:"NAME=VALUE"`
	User         string     `env:"-" help:"Who it runs as; as the node when not given." placeholder:"USER|UID"`
	Rlimit       []string   `env:"-" sep:"none" help:"A limit of its resources, as nofile=4096; may be repeated." placeholder:"NAME=N"`
	ConfigFile   string     `env:"-" type:"path" help:"A file on the node's host that it gets as {config}." placeholder:"FILE"`
	NoPort       bool       `env:"-" help:"It listens nowhere."`
	Ready        string     `env:"-" help:"When it is ready: tcp, once its port takes connections, as a process when not given; http:/PATH, once that answers with 2xx; log:TEXT, once it has said that, a vm on its console; or none, at once." placeholder:"tcp|http:/PATH|log:TEXT|none"`
	ReadyTimeout units.Span `env:"-" help:"How long that may take; 5m when not given."`
	Grace        units.Span `env:"-" help:"How long it may take to end before it is killed; 90s when not given."`
	Compact      string     `env:"-" help:"A command, for /bin/sh -c, that has it make itself small before it is put away: it exits with 0 once that is done, and with 75 to be asked again." placeholder:"TEXT"`
	Idle         units.Span `env:"-" help:"It is deprovisioned when nobody was connected to its port, or its probe says so, for so long; never when not given."`
	Probe        string     `env:"-" help:"A command, for /bin/sh -c, that exits with 0 while it is in use, in place of a look at its port." placeholder:"TEXT"`
	Memory       units.Size `env:"-" help:"What it is expected to take, for the node's limit; of a vm what it has." placeholder:"SIZE"`
	Disk         units.Size `env:"-" help:"What of the disk it is expected to take; of a vm the least size of its disk." placeholder:"SIZE"`
	CPUs         int        `name:"cpus" env:"-" help:"Processors of a vm." placeholder:"N"`
	Key          []string   `env:"-" sep:"none" help:"An SSH key that a vm is told to let in; may be repeated." placeholder:"TEXT"`
	Kernel       string     `env:"-" type:"path" help:"A kernel on the node's host that a vm boots, in place of what its disk has for that." placeholder:"FILE"`
	Initrd       string     `env:"-" type:"path" help:"What that is given as its first disk." placeholder:"FILE"`
	Append       string     `env:"-" help:"And as its command line." placeholder:"TEXT"`
	Lazy         bool       `env:"-" help:"A process starts before its data are here; they are brought in as it reads them, and behind that."`
	Target       string     `env:"-" help:"Where its data are put away, and come from, in place of the mesh's origin: file:///FOLDER, s3://BUCKET/PREFIX?endpoint=URL, or a file that says it as JSON." placeholder:"URL|FILE.json"`
	Mesh         bool       `env:"-" help:"Nodes of any farm may run it and read what it has; the nodes must be publishers."`
	Takeover     bool       `env:"-" help:"Although another node has it: what that one has not put away stays there."`
}

// Help is what provision --help says beside.
func (*provisionCmd) Help() string {
	return "In the command, --env, --ready and --compact, {name} stands for the instance's name, {data} for the folder of its data, {port} for its port and {config} for --config-file. With a name alone it is run as it was before."
}

// Run provisions, and says where the workload listens.
func (c *provisionCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio, command *kong.Context) error {
	req, err := c.request()
	if err != nil {
		return fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	return c.do(ctx, app, std, command, ask.Put(pathOf(c.Name), req))
}

// request is what the API is asked for.
func (c *provisionCmd) request() (api.Provision, error) {
	target, err := targetOf(c.Target)
	if err != nil {
		return api.Provision{}, err
	}
	req := api.Provision{Takeover: c.Takeover, Spec: terms.Spec{
		Runtime: c.Runtime, From: c.From, Command: c.Arguments, Env: c.Env, User: c.User, Rlimits: c.Rlimit, Config: c.ConfigFile, NoPort: c.NoPort, Ready: c.Ready,
		ReadyTimeout: seconds(c.ReadyTimeout), Grace: seconds(c.Grace), Idle: seconds(c.Idle), Memory: int64(c.Memory), Disk: int64(c.Disk), CPUs: c.CPUs, Keys: c.Key,
		Kernel: c.Kernel, Initrd: c.Initrd, Append: c.Append, Mesh: c.Mesh, Lazy: c.Lazy, Target: target,
	}}
	if c.Command != "" && len(c.Arguments) > 0 {
		return req, fmt.Errorf("a command stands both in --command and behind --: %q", c.Arguments[0])
	}
	if c.Command != "" {
		req.Command = shell("exec " + c.Command)
	}
	if c.Compact != "" {
		req.Compact = shell(c.Compact)
	}
	if c.Probe != "" {
		req.Probe = shell(c.Probe)
	}
	if req.IsZero() { // as it was before
		return req, nil
	}
	_, err = req.WithDefaults()
	return req, err
}

func shell(text string) []string { return []string{"/bin/sh", "-c", text} }

func seconds(s units.Span) terms.Seconds { return terms.Seconds(time.Duration(s).Seconds()) }
