package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/p2p/swarm"
)

// verdict is the exit code of a command that was done, and says something by it.
type verdict int

func (v verdict) Error() string { return fmt.Sprintf("exit code %d", int(v)) }

// What ping exits with: 1, as all that fails, where there is no way.
const (
	pingLAN             = 0
	pingDirect  verdict = 10
	pingRelayed verdict = 11
)

type pingCmd struct {
	Peer    string     `arg:"" help:"Its peer ID, its name, the beginning of one that is nobody else's, or a full multiaddr."`
	Count   int        `short:"c" default:"4" env:"-" help:"How many answers it is asked for; 100 at most."`
	Timeout units.Span `default:"30s" env:"-" help:"How long all of it may take; a hole through a NAT has 10s of them."`
}

// Help is what ping --help says beside.
func (c *pingCmd) Help() string {
	return fmt.Sprintf("The exit code says by what way the member is reached: %d on the LAN, %d directly from elsewhere, %d through a relay, 1 by none.", pingLAN, pingDirect, pingRelayed)
}

// Run asks the node to reach the member, and to be answered by it.
func (c *pingCmd) Run(ctx context.Context, app *cli, std stdio) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(c.Timeout), fmt.Errorf("ping %s: no answer within %s", c.Peer, time.Duration(c.Timeout)))
	defer cancel()
	var raw json.RawMessage
	var p api.Ping
	err := app.ask(ctx, "GET", fmt.Sprintf("/api/peers/%s/ping?count=%d", url.PathEscape(c.Peer), c.Count), nil, &raw)
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err == nil {
		err = show(app, std, raw, pingTable)
	}
	switch {
	case err != nil:
		return err
	case p.Way == swarm.Direct:
		return pingDirect
	case p.Way == swarm.Through:
		return pingRelayed
	}
	return nil
}

func pingTable(w io.Writer, p api.Ping) {
	fmt.Fprintf(w, "%s\t%s\nway\t%s, at %s\n", cmp.Or(p.Name, "member"), p.ID+prefixed(" of farm ", p.Farm), p.Way, p.Path)
	for i, s := range p.RoundTrips {
		fmt.Fprintf(w, "answer %d\t%.2f ms\n", i+1, 1000*s)
	}
}
