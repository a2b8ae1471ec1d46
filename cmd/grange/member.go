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

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a join token and print it."`
	Ls     tokenLsCmd     `cmd:"" help:"List the tokens that this node made."`
	Revoke tokenRevokeCmd `cmd:"" help:"Make an unused token useless."`
}

type tokenCreateCmd struct {
	Role     string `enum:"node,seed,publisher,admin" required:"" help:"What the member may do: node volumes of its farm, publisher images too, admin tokens and revocations too, seed nothing but serve public content (${enum})."`
	Farm     string `help:"The farm that the member belongs to; this node's when not given."`
	Lifetime span   `default:"24h" help:"How long the token is good."`
}

func (c *tokenCreateCmd) Run(ctx context.Context, app *cli, std stdio) error {
	var t api.Token
	if err := app.ask(ctx, "POST", "/api/tokens", api.TokenRequest{Role: c.Role, Farm: c.Farm, Lifetime: time.Duration(c.Lifetime).Seconds()}, &t); err != nil {
		return err
	}
	if t.Limits != "" {
		fmt.Fprintf(std.err, "grange: %s\n", t.Limits)
	}
	_, err := fmt.Fprintln(std.out, t.Token)
	return err
}

type tokenLsCmd struct {
	JSON bool `name:"json" help:"Print the API's document."`
}

func (c *tokenLsCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return list(ctx, app, std, query{"/api/tokens", c.JSON}, func(w io.Writer, tokens []api.Token) {
		fmt.Fprintln(w, "ID\tROLE\tFARM\tSTATE\tEXPIRES\tUSED BY")
		for _, t := range tokens {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Role, t.Farm, t.State, t.Expires.Local().Format(time.DateTime), t.UsedBy)
		}
	})
}

type tokenRevokeCmd struct {
	ID string `arg:""`
}

func (c *tokenRevokeCmd) Run(ctx context.Context, app *cli) error {
	return app.ask(ctx, "DELETE", "/api/tokens/"+url.PathEscape(c.ID), nil, nil)
}

type resolveCmd struct {
	Name string `arg:"" help:"A name, or KIND:NAME, as image:debian."`
	JSON bool   `name:"json" help:"Print the API's document."`
}

func (c *resolveCmd) Run(ctx context.Context, app *cli, std stdio) error {
	err := content.CheckName(c.Name)
	if kind, name, ok := strings.Cut(c.Name, ":"); ok {
		err = content.Kind(kind).CheckName(name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return list(ctx, app, std, query{"/api/resolve/" + url.PathEscape(c.Name), c.JSON}, func(w io.Writer, r api.Resolved) {
		confirmed := "confirmed by the origin"
		if !r.Confirmed {
			confirmed = "unconfirmed: " + cmp.Or(r.Warning, "the origin does not answer")
		}
		fmt.Fprintf(w, "%s:%s\t%s\nsize\t%s\nversion\t%d, seen %.0f s ago, %s\nscope\t%s\n", r.Kind, r.Name, r.CID, humanBytes(r.Size), r.Version, r.Age, confirmed, r.Scope)
	})
}

type statusCmd struct {
	JSON bool `name:"json" help:"Print the API's document."`
	Wait span `help:"Wait up to this long for the node to be ready."`
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
		err = show(std, c.JSON, raw, statusTable)
	}
	if err == nil && !s.Ready {
		err = errors.New("not ready: waiting for " + strings.Join(s.Waiting, ", "))
	}
	return err
}

func (c *cli) status(ctx context.Context) (raw json.RawMessage, s api.Status, err error) {
	if err = c.ask(ctx, "GET", "/api/status", nil, &raw); err == nil {
		err = json.Unmarshal(raw, &s)
	}
	return raw, s, err
}

func statusTable(w io.Writer, s api.Status) {
	fmt.Fprintf(w, "node\t%s %s\nmesh\t%s\nfarm\t%s, %s\nrole\t%s%s\norigin\t%s %s %s\n", s.Self.Name, s.Self.ID, s.Self.Mesh, cmp.Or(s.Self.Farm, "none"), neighbours(s), s.Self.Role, prefixed(": ", revoked(s.Self)), s.Origin.State, s.Origin.URL, s.Origin.Detail)
	fmt.Fprintf(w, "cache\t%s of %s%s, %s\nvolumes\t%d%s\n", humanBytes(s.Cache.Used), humanBytes(s.Cache.Quota), beyond(s.Cache), count(int(s.Cache.Chunks), "chunk"), s.Volumes, prefixed(", to be looked at: ", strings.Join(s.Failing, ", ")))
	fmt.Fprintf(w, "read from\tcache %s, farm %s, swarm %s, origin %s\n", humanBytes(s.Bytes.Cache), humanBytes(s.Bytes.Farm), humanBytes(s.Bytes.Swarm), humanBytes(s.Bytes.Origin))
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
