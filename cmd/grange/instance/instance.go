// Package instance has the commands on instances, and the flags of a node that has some.
package instance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/text/runes"
	"golang.org/x/text/transform"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/content"
)

// Commands are those on instances.
type Commands struct {
	Provision   provisionCmd `cmd:"" help:"Run a workload over what its name stands for, or what it begins as."`
	Hibernate   deed         `cmd:"" help:"Stop a workload, and keep its data and its port here."`
	Wake        deed         `cmd:"" help:"Start one again that hibernates."`
	Deprovision deed         `cmd:"" help:"Stop a workload, put its data away in the mesh, and remove it here; absent is success."`
	Obliterate  deed         `cmd:"" help:"Stop a workload and delete its data, here and in the mesh; absent is success."`
	Ls          lsCmd        `cmd:"" help:"List instances: this node's, or with --all those of the mesh."`
	Show        showCmd      `cmd:"" help:"Show one instance."`
	Logs        logsCmd      `cmd:"" help:"Print what a workload says, from the time that it was provisioned here."`
	Lower       lowerCmd     `cmd:"" hidden:"" help:"Show what the data of an instance began as, for its node."`
}

func pathOf(name string) string { return "/api/instances/" + content.Segment(name) }

// named is what commands take that change an instance.
type named struct {
	Name   string `arg:"" help:"The instance."`
	NoWait bool   `env:"-" help:"Print what is under way at once; 'operation show' says how far it is."`
}

// do asks for the change that a command is called by, follows what it takes, and prints what the instance is in the end.
func (c *named) do(ctx context.Context, app *ask.Node, std ask.Stdio, command *kong.Context, r ask.Request) error {
	if err := content.CheckName(c.Name); err != nil {
		return fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	var raw json.RawMessage
	var begun api.Instance
	err := app.Send(ctx, r, &raw)
	if ctx.Err() != nil { // of a node that has who asks wait
		return fmt.Errorf("%s %s: it goes on; `grange instance show %s` says how far it is", command.Selected().Name, c.Name, c.Name)
	}
	if err == nil {
		err = json.Unmarshal(raw, &begun)
	}
	if err == nil && begun.Operation != "" && !c.NoWait {
		op := api.Operation{ID: begun.Operation, Kind: command.Selected().Name, Target: c.Name}
		if err = app.FollowAside(ctx, std, op); err == nil {
			raw, err = c.now(ctx, app)
		} else if ctx.Err() != nil && command.Selected().Name == "obliterate" { // which nobody can give up
			err = fmt.Errorf("obliterate %s: it goes on; `grange instance show %s` says how far it is", c.Name, c.Name)
		}
	}
	if err != nil {
		return err
	}
	return ask.Show(app, std, raw, func(w io.Writer, v api.Instance) {
		out := standing(v)
		if command.Selected().Name == "obliterate" && v.Node != "" && v.State != state.Unprovisioned && v.Operation == "" { // of an orphan
			out = v.Name + " is gone here; " + v.Node + " has it"
		} else if begun.State == state.Unprovisioned && begun.Farm == "" { // there was nothing to do
			out = v.Name + " is not on this node; `grange instance ls --all` says who has it"
		}
		fmt.Fprintln(w, out)
	})
}

// now is the document of the instance: where there is none, that of one that is not provisioned, as the API answers a change.
func (c *named) now(ctx context.Context, app *ask.Node) (raw json.RawMessage, err error) {
	err = app.Send(ctx, ask.Get(pathOf(c.Name)), &raw)
	if problem, ok := errors.AsType[*client.Problem](err); ok && problem.Status == http.StatusNotFound {
		return json.Marshal(api.Instance{Name: c.Name, State: state.Unprovisioned, Since: time.Now()})
	}
	return raw, err
}

// standing is "web1 is provisioned, port 20000".
func standing(v api.Instance) string {
	out := v.Name + " is " + string(v.State)
	if v.Port != 0 {
		out += ", port " + strconv.Itoa(v.Port)
	}
	if v.Operation != "" {
		out += fmt.Sprintf("; `grange operation show %s` says how far it is", v.Operation)
	}
	if v.State != state.Unprovisioned { // of which nothing is here that could be amiss
		out += ask.Prefixed(": ", v.Detail)
	}
	return out
}

// deed is a change that takes no more than a name.
type deed struct{ named }

// Run has done what its command is called.
func (c *deed) Run(ctx context.Context, app *ask.Node, std ask.Stdio, command *kong.Context) error {
	return c.do(ctx, app, std, command, ask.Post(pathOf(c.Name)+"/"+command.Selected().Name, nil))
}

type lsCmd struct {
	ask.Choice
	All bool `env:"-" help:"Those of the whole mesh, each with the node that has it."`
}

func (c *lsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	path, last, value := "/api/instances", "PORT", func(v api.Instance) string { return number(v.Port) }
	if c.All {
		path, last, value = path+"?all=true", "NODE", func(v api.Instance) string { return cmp.Or(v.Node, "-") }
	}
	return ask.List(ctx, app, std, c.Of(path), func(w io.Writer, all []api.Instance) {
		fmt.Fprintln(w, "NAME\tFARM\tRUNTIME\tFROM\tSTATE\tSINCE\tSAVED\t"+last+"\tDETAIL")
		for _, v := range all {
			saved := "never"
			if !v.Saved.IsZero() {
				saved = ask.Moment(v.Saved)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.Farm, v.Spec.Runtime, cmp.Or(v.Spec.From, "-"), v.State, ask.Moment(v.Since), saved, value(v), v.Detail)
		}
	})
}

// number is one for a list, where 0 is none.
func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

type showCmd struct {
	Name string `arg:"" help:"The instance."`
}

func (c *showCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(pathOf(c.Name)), table)
}

func table(w io.Writer, v api.Instance) {
	fmt.Fprintf(w, "name\t%s\nfarm\t%s\nnode\t%s\nstate\t%s%s%s\nsince\t%s\nepoch\t%d\n", v.Name, v.Farm, v.Node, v.State, ask.Prefixed(", ", string(v.Step)), ask.Prefixed(": ", v.Detail), v.Since.Local().Format(time.DateTime), v.Epoch)
	crashes, saved := "", "never"
	if v.Crashes > 0 {
		crashes = strconv.Itoa(v.Crashes)
	}
	if !v.Saved.IsZero() {
		saved = v.Saved.Local().Format(time.DateTime) + ask.Prefixed(", as ", v.Root.String())
	}
	how, what := v.Spec.ReadyWhen()
	yes := map[bool]string{true: "yes"}
	for _, x := range [][2]string{
		{"operation", v.Operation}, {"crashes", crashes}, {"runtime", v.Spec.Runtime}, {"from", cmp.Or(v.Spec.From, "an empty folder")}, {"command", words(v.Spec.Command)},
		{"env", words(v.Spec.Env)}, {"user", v.Spec.User}, {"limits", words(v.Spec.Rlimits)}, {"config", v.Spec.Config}, {"ready", how + ask.Prefixed(":", what)}, {"ready within", span(v.Spec.ReadyTimeout)},
		{"ends within", span(v.Spec.Grace)}, {"lazy", yes[v.Spec.Lazy]}, {"mesh", yes[v.Spec.Mesh]}, {"no port", yes[v.Spec.NoPort]}, {"keys", words(v.Spec.Keys)}, {"compact", words(v.Spec.Compact)},
		{"idle", span(v.Spec.Idle)}, {"probe", words(v.Spec.Probe)}, {"memory", size(v.Spec.Memory)}, {"disk", size(v.Spec.Disk)}, {"processors", number(v.Spec.CPUs)}, {"kernel", v.Spec.Kernel}, {"initrd", v.Spec.Initrd}, {"append", v.Spec.Append}, {"target", v.Spec.Target},
		{"port", number(v.Port)}, {"process", number(v.PID)}, {"data", v.Dir}, {"put away", saved},
	} {
		if x[1] != "" && x[1] != "-" {
			fmt.Fprintf(w, "%s\t%s\n", x[0], x[1])
		}
	}
}

// words is a list on one line, each quoted where it needs to be.
func words(list []string) string {
	out := make([]string, len(list))
	for i, a := range list {
		if out[i] = a; a == "" || strings.ContainsAny(a, " \t\n\"'") {
			out[i] = strconv.Quote(a)
		}
	}
	return strings.Join(out, " ")
}

func size(n int64) string {
	if n == 0 {
		return ""
	}
	return units.Bytes(n)
}

func span(s terms.Seconds) string {
	if s == 0 {
		return ""
	}
	return s.Duration().String()
}

type logsCmd struct {
	Name   string     `arg:"" help:"The instance."`
	Follow bool       `short:"f" env:"-" help:"Print what it says from now on too, until this command is ended."`
	Last   units.Size `env:"-" help:"The last of it alone, about; all of the log when not given." placeholder:"SIZE"`
}

// Help is what logs --help says beside.
func (*logsCmd) Help() string {
	return "Into a file or a pipe it goes as it was said. On a terminal what would steer that is written out, as \\u001b. Older parts of the log lie beside it, on the node's host."
}

// Run prints the API's document, which is text, with --json too.
func (c *logsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	to, err := app.Client()
	if err != nil {
		return err
	}
	query := url.Values{}
	if c.Follow {
		query.Set("follow", "true")
	}
	if c.Last > 0 {
		query.Set("last", strconv.FormatInt(int64(c.Last), 10))
	}
	out := terminal.Raw(std.Out)
	if _, steered := terminal.Of(std.Out); steered {
		whole := transform.NewWriter(std.Out, runes.ReplaceIllFormed()) // characters that come in two parts
		defer whole.Close()
		out = whole
	}
	if err := to.Copy(ctx, out, pathOf(c.Name)+"/logs"+ask.Prefixed("?", query.Encode())); !c.Follow || ctx.Err() == nil {
		return err
	}
	return nil // it was told to end
}
