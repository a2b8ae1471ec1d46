package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a join token and print it."`
	Ls     tokenLsCmd     `cmd:"" help:"List the tokens that this node made."`
	Revoke tokenRevokeCmd `cmd:"" help:"Make an unused token useless."`
}

type tokenCreateCmd struct {
	Role     trust.Role `enum:"node,seed,publisher,admin" required:"" help:"What the member may do: node volumes of its farm, publisher images too, admin tokens and revocations too, seed nothing but serve public content (${enum})."`
	Farm     string     `help:"The farm that the member belongs to; this node's when not given."`
	Lifetime units.Span `default:"24h" help:"How long the token is good."`
}

func (c *tokenCreateCmd) Run(ctx context.Context, app *cli, std stdio) error {
	wanted := api.TokenRequest{Role: c.Role, Farm: c.Farm, Lifetime: time.Duration(c.Lifetime).Seconds()}
	return tell(ctx, app, std, request{"POST", "/api/tokens", wanted}, func(w io.Writer, t api.Token) {
		if t.Limits != "" {
			complain(std.err, t.Limits)
		}
		fmt.Fprintln(w, t.Token)
	})
}

type tokenLsCmd struct{}

func (c *tokenLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/tokens"}, func(w io.Writer, tokens []api.Token) {
		fmt.Fprintln(w, "ID\tROLE\tFARM\tSTATE\tEXPIRES\tUSED BY")
		for _, t := range tokens {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Role, t.Farm, t.State, t.Expires.Local().Format(time.DateTime), t.UsedBy)
		}
	})
}

type tokenRevokeCmd struct {
	ID string `arg:"" help:"As token ls has it."`
}

func (c *tokenRevokeCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "DELETE", path: "/api/tokens/" + url.PathEscape(c.ID)}, said("token %s is useless now", c.ID))
}

type resolveCmd struct {
	Name string `arg:"" help:"A name, or KIND:NAME, as image:debian."`
}

func (c *resolveCmd) Run(ctx context.Context, app *cli, std stdio) error {
	kind, name := content.CutKind(c.Name)
	if err := cmp.Or(kind, content.KindImage).CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return tell(ctx, app, std, request{method: "GET", path: "/api/resolve/" + content.Segment(c.Name)}, func(w io.Writer, r api.Resolved) {
		confirmed := "confirmed by the origin"
		if !r.Confirmed {
			confirmed = "unconfirmed: " + cmp.Or(r.Warning, "the origin does not answer")
		}
		fmt.Fprintf(w, "%s:%s\t%s\nsize\t%s\nversion\t%d, seen %.0f s ago, %s\nscope\t%s\n", r.Kind, r.Name, r.CID, units.Bytes(r.Size), r.Version, r.Age, confirmed, r.Scope)
	})
}

type statusCmd struct {
	All  bool       `help:"Say how all members of the mesh stand too." env:"-"`
	Wait units.Span `help:"Wait up to this long for the node to be ready."`
}

const (
	// statusInterval is how often --wait asks.
	statusInterval = 100 * time.Millisecond
	// statusTimeout is how long the answer may take without --wait.
	statusTimeout = 10 * time.Second
)

// Run asks once, or until the node is ready, and prints the last answer.
func (c *statusCmd) Run(ctx context.Context, app *cli, std stdio) error {
	within := cmp.Or(time.Duration(c.Wait), statusTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the node does not answer within %s", within))
	defer cancel()
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	raw, s, err := app.status(ctx)
	for c.Wait > 0 && !s.Ready && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if r, now, nerr := app.status(ctx); ctx.Err() == nil {
			raw, s, err = r, now, nerr
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if err == nil {
		err = c.show(ctx, app, std, raw)
	}
	if err == nil && !s.Ready {
		err = errors.New("not ready: waiting for " + strings.Join(s.Waiting, ", "))
	}
	return err
}

// show prints a status, with --all beside the members.
func (c *statusCmd) show(ctx context.Context, app *cli, std stdio, status json.RawMessage) error {
	if !c.All {
		return show(app, std, status, statusTable)
	}
	var members json.RawMessage
	if err := app.ask(ctx, "GET", "/api/members", nil, &members); err != nil {
		return err
	}
	if app.JSON {
		return json.NewEncoder(std.out).Encode(map[string]json.RawMessage{"node": status, "members": members})
	}
	if err := show(app, std, status, statusTable); err != nil {
		return err
	}
	fmt.Fprintln(std.out)
	return show(app, std, members, membersTable)
}

func (c *cli) status(ctx context.Context) (raw json.RawMessage, s api.Status, err error) {
	if err = c.ask(ctx, "GET", "/api/status", nil, &raw); err == nil {
		err = json.Unmarshal(raw, &s)
	}
	return raw, s, err
}

func statusTable(w io.Writer, s api.Status) {
	fmt.Fprintf(w, "node\t%s %s\nmesh\t%s\nfarm\t%s, %s\nrole\t%s%s\norigin\t%s %s %s\n", s.Self.Name, s.Self.ID, s.Self.Mesh, cmp.Or(s.Self.Farm, "none"), neighbours(s), s.Self.Role, prefixed(": ", revoked(s.Self)), s.Origin.State, s.Origin.URL, s.Origin.Detail)
	fmt.Fprintf(w, "cache\t%s of %s%s, %s\nvolumes\t%d%s\n", units.Bytes(s.Cache.Used), units.Bytes(s.Cache.Quota), beyond(s.Cache), count(int(s.Cache.Chunks), "chunk"), s.Volumes, prefixed(", to be looked at: ", strings.Join(s.Failing, ", ")))
	fmt.Fprintf(w, "read from\tcache %s, farm %s, swarm %s, origin %s\n", units.Bytes(s.Bytes.Cache), units.Bytes(s.Bytes.Farm), units.Bytes(s.Bytes.Swarm), units.Bytes(s.Bytes.Origin))
	for _, a := range s.Self.Addrs {
		fmt.Fprintf(w, "address\t%s\n", a)
	}
}

// neighbours says how many a node has, and what is wrong with its farm.
func neighbours(s api.Status) string {
	text := count(len(s.Farm), "neighbour")
	if s.Neighbourhood.State == node.FarmCutOff {
		text += ", " + s.Neighbourhood.State
	}
	return text + prefixed(": ", s.Neighbourhood.Detail)
}

// revoked says what became of a node that is no member any more, and what to do.
func revoked(self api.Self) string {
	if self.Revoked.IsZero() {
		return ""
	}
	return "revoked on " + self.Revoked.Local().Format(time.DateTime) + "; to come back it needs an empty --data and a new token"
}

// count is "1 chunk" or "2 chunks".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
