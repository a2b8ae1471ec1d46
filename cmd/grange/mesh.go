package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/term"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

type meshCmd struct {
	Members   meshMembersCmd `cmd:"" help:"Show all members, those that are away too."`
	Peers     meshPeersCmd   `cmd:"" help:"Show this node and the members it is connected with."`
	Revoke    meshRevokeCmd  `cmd:"" help:"End a membership, for good. What the member signed before stays."`
	Rotate    meshRotateCmd  `cmd:"" help:"Give the mesh new gossip and announce secrets; do so after a revocation."`
	ExportKey exportKeyCmd   `cmd:"" help:"Write the mesh key to a file, as a backup: who has it rules the mesh."`
	ImportKey importKeyCmd   `cmd:"" help:"Bring the mesh key to this node, which becomes an admin: the way back when no admin is left."`
}

type meshPeersCmd struct{}

func (c *meshPeersCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get("/api/peers"), func(w io.Writer, p api.Peers) {
		fmt.Fprintln(w, "NAME\tFARM\tROLE\tSTATE\tRECEIVED\tSENT\tFAILED\tPATH\tID")
		row := func(m api.Peer) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d of %d\t%s\t%s\n", cmp.Or(m.Name, "-"), cmp.Or(m.Farm, "-"), m.Role, m.State+ask.Prefixed(": ", m.Why), units.Bytes(m.Received), units.Bytes(m.Sent), m.Failures, m.Requests, cmp.Or(strings.TrimSpace(string(m.Way)+" "+m.Path), "-"), m.ID)
		}
		row(api.Peer{ID: p.Self.ID, Name: p.Self.Name, Farm: p.Self.Farm, Role: p.Self.Role, State: "this node"})
		for _, m := range p.Peers {
			row(m)
		}
	})
}

type meshMembersCmd struct{ ask.Choice }

func (c *meshMembersCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get(c.Of("/api/members")), membersTable)
}

func membersTable(w io.Writer, members []api.Member) {
	fmt.Fprintln(w, "NAME\tFARM\tROLE\tSTATE\tLAST SEEN\tPATH\tID")
	for _, m := range members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(m.Name, "-"), cmp.Or(m.Farm, "-"), cmp.Or(m.Role, "-"), m.State, ask.Moment(m.LastSeen), cmp.Or(strings.TrimSpace(m.Way+" "+m.Path), "-"), m.ID)
	}
}

type meshRevokeCmd struct {
	Member string `arg:"" help:"ID, public key or name of the member, or the beginning of one that is nobody else's; or the ID of a token: it is made useless, or the member revoked that joined with it."`
	Myself bool   `env:"-" help:"Revoke this node itself."`
}

func (c *meshRevokeCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	path := "/api/members/" + url.PathEscape(c.Member)
	if c.Myself {
		path += "?myself=true"
	}
	return ask.Tell(ctx, app, std, ask.Delete(path), func(w io.Writer, r api.Revoked) {
		if r.Member.Key.IsZero() {
			fmt.Fprintf(w, "token %s is useless now; nobody had joined with it\n", r.Token)
			return
		}
		fmt.Fprintf(w, "revoked %s %s, %s of farm %s; it was told to %s, the others will hear of it from the first that they meet\n",
			r.Member.ID, r.Member.Name, cmp.Or(r.Member.Role, "unknown"), cmp.Or(r.Member.Farm, "?"), ask.Count(r.Told, "connected member"))
		fmt.Fprintln(w, "`grange mesh rotate` changes the secrets that it knows")
	})
}

type meshRotateCmd struct{}

func (c *meshRotateCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Post("/api/mesh/rotate", nil), func(w io.Writer, r api.Rotated) {
		fmt.Fprintf(w, "the secrets are of generation %d now; members that are away get them when they are back\n", r.Generation)
	})
}

type exportKeyCmd struct {
	File           string `arg:"" help:"Where to write it, readable by you only; - is the standard output."`
	Passphrase     bool   `env:"-" help:"Ask for a passphrase and encrypt the file with it, as age does."`
	PassphraseFile string `env:"-" help:"Encrypt with the passphrase in a file." placeholder:"FILE"`
}

func (c *exportKeyCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	phrase, err := passphrase(std, c.Passphrase, c.PassphraseFile)
	if err != nil {
		return err
	}
	if c.Passphrase { // a slip of the finger would cost the mesh
		again, err := prompt(std, "again: ")
		if err != nil {
			return err
		}
		if again != phrase {
			return errors.New("the passphrases differ")
		}
	}
	var key api.MeshKey
	if err := app.Ask(ctx, "GET", "/api/mesh/key", nil, &key); err != nil {
		return err
	}
	sealed, err := sealKey(key.Key, phrase)
	if err != nil {
		return err
	}
	if c.File == "-" {
		if app.JSON {
			return json.NewEncoder(std.Out).Encode(api.MeshKey{Key: string(sealed)})
		}
		_, err := std.Out.Write(sealed)
		return err
	}
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("export mesh key: %s is there already, and is left alone: name another file, or remove it", c.File)
	}
	if err != nil {
		return fmt.Errorf("export mesh key: %w", err)
	}
	_, err = f.Write(sealed)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("export mesh key: %w", err)
	}
	who := "who has it"
	if phrase != "" {
		who += " and the passphrase"
	}
	return ask.Show(app, std, nil, ask.Said("the mesh key is in %s: %s rules the mesh", c.File, who))
}

type importKeyCmd struct {
	File           string `arg:"" help:"What export-key wrote; - is the standard input."`
	PassphraseFile string `env:"-" help:"Where the passphrase of an encrypted file stands; it is asked for when not given." placeholder:"FILE"`
}

func (c *importKeyCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	sealed, err := std.Read(c.File)
	if err != nil {
		return fmt.Errorf("import mesh key: %w", err)
	}
	text := string(sealed)
	if bytes.HasPrefix(sealed, []byte(ageMagic)) {
		phrase, err := passphrase(std, c.PassphraseFile == "", c.PassphraseFile)
		if err != nil {
			return err
		}
		if text, err = openKey(sealed, phrase); err != nil {
			return err
		}
	}
	if _, err := trust.ParseKeyFile(text); err != nil {
		return fmt.Errorf("import mesh key: %s: %w", c.File, err)
	}
	return ask.Tell(ctx, app, std, ask.Put("/api/mesh/key", api.MeshKey{Key: text}), ask.Said("this node has the mesh key, and is an admin"))
}

const ageMagic = "age-encryption.org/"

func sealKey(text, phrase string) ([]byte, error) {
	if phrase == "" {
		return []byte(text), nil
	}
	to, err := age.NewScryptRecipient(phrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		_, err = io.WriteString(w, text)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out.Bytes(), nil
}

func openKey(sealed []byte, phrase string) (string, error) {
	id, err := age.NewScryptIdentity(phrase)
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return "", fmt.Errorf("decrypt: the passphrase is another, or the file is damaged: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(r, ask.SecretMax))
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	return string(b), nil
}

// passphrase asks for one or reads a file; "" is none. All could see an argument.
func passphrase(std ask.Stdio, wanted bool, file string) (string, error) {
	switch {
	case file != "":
		b, err := std.ReadSecret(file)
		if err == nil && b == "" {
			err = errors.New("it is empty")
		}
		if err != nil {
			return "", fmt.Errorf("passphrase in %s: %w", file, err)
		}
		return b, nil
	case wanted:
		return prompt(std, "passphrase: ")
	}
	return "", nil
}

// prompt asks on the terminal, without showing what is typed.
func prompt(std ask.Stdio, text string) (string, error) {
	in, ok := std.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", fmt.Errorf("%w: the passphrase is asked for on a terminal, and there is none; use --passphrase-file", ask.ErrUsage)
	}
	fmt.Fprint(std.Err, text)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(std.Err)
	if err == nil && len(b) == 0 {
		err = errors.New("the passphrase is empty")
	}
	return string(b), err
}

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

func (c *tokenCreateCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	wanted := api.TokenRequest{Role: c.Role, Farm: c.Farm, Lifetime: time.Duration(c.Lifetime).Seconds()}
	return ask.Tell(ctx, app, std, ask.Post("/api/tokens", wanted), func(w io.Writer, t api.Token) {
		if t.Limits != "" {
			ask.Complain(std.Err, t.Limits)
		}
		fmt.Fprintln(w, t.Token)
	})
}

type tokenLsCmd struct{}

func (c *tokenLsCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Get("/api/tokens"), func(w io.Writer, tokens []api.Token) {
		fmt.Fprintln(w, "ID\tROLE\tFARM\tSTATE\tEXPIRES\tUSED BY")
		for _, t := range tokens {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Role, t.Farm, t.State, t.Expires.Local().Format(time.DateTime), t.UsedBy)
		}
	})
}

type tokenRevokeCmd struct {
	ID string `arg:"" help:"As token ls has it."`
}

func (c *tokenRevokeCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	return ask.Tell(ctx, app, std, ask.Delete("/api/tokens/"+url.PathEscape(c.ID)), ask.Said("token %s is useless now", c.ID))
}

type resolveCmd struct {
	Name string `arg:"" help:"A name, or KIND:NAME, as image:debian."`
}

func (c *resolveCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	kind, name := content.CutKind(c.Name)
	if err := cmp.Or(kind, content.KindImage).CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	return ask.Tell(ctx, app, std, ask.Get("/api/resolve/"+content.Segment(c.Name)), func(w io.Writer, r api.Resolved) {
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
func (c *statusCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	within := cmp.Or(time.Duration(c.Wait), statusTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the node does not answer within %s", within))
	defer cancel()
	tick := time.Tick(statusInterval)
	raw, s, err := app.Status(ctx)
	for c.Wait > 0 && !s.Ready && ctx.Err() == nil {
		select {
		case <-tick:
		case <-ctx.Done():
		}
		if r, now, nerr := app.Status(ctx); ctx.Err() == nil {
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

func (c *statusCmd) show(ctx context.Context, app *ask.Node, std ask.Stdio, status json.RawMessage) error {
	if !c.All {
		return ask.Show(app, std, status, statusTable)
	}
	var members json.RawMessage
	if err := app.Ask(ctx, "GET", "/api/members", nil, &members); err != nil {
		return err
	}
	if app.JSON {
		return json.NewEncoder(std.Out).Encode(map[string]json.RawMessage{"node": status, "members": members})
	}
	if err := ask.Show(app, std, status, statusTable); err != nil {
		return err
	}
	fmt.Fprintln(std.Out)
	return ask.Show(app, std, members, membersTable)
}

func statusTable(w io.Writer, s api.Status) {
	fmt.Fprintf(w, "node\t%s %s\nmesh\t%s\nfarm\t%s, %s\nrole\t%s%s\norigin\t%s %s %s\n", s.Self.Name, s.Self.ID, s.Self.Mesh, cmp.Or(s.Self.Farm, "none"), neighbours(s), s.Self.Role, ask.Prefixed(": ", revoked(s.Self)), s.Origin.State, s.Origin.URL, s.Origin.Detail)
	fmt.Fprintf(w, "cache\t%s of %s%s, %s\nvolumes\t%d%s\n", units.Bytes(s.Cache.Used), units.Bytes(s.Cache.Quota), beyond(s.Cache), ask.Count(int(s.Cache.Chunks), "chunk"), s.Volumes, ask.Prefixed(", to be looked at: ", strings.Join(s.Failing, ", ")))
	fmt.Fprintf(w, "read from\t%s\n", ask.Sources(s.Bytes))
	followedLines(w, s.Followed)
	seedTable(w, s.Seed)
	for _, a := range s.Self.Addrs {
		fmt.Fprintf(w, "address\t%s\n", a)
	}
	for _, x := range s.Warnings {
		fmt.Fprintf(w, "warning\t%s: %s\n", x.About, x.Text)
	}
}

// neighbours says how many a node has, and what is wrong with its farm.
func neighbours(s api.Status) string {
	text := ask.Count(len(s.Farm), "neighbour")
	if s.Neighbourhood.State == node.FarmCutOff {
		text += ", " + s.Neighbourhood.State
	}
	return text + ask.Prefixed(": ", s.Neighbourhood.Detail)
}

// revoked says what became of a node that is no member any more, and what to do.
func revoked(self api.Self) string {
	if self.Revoked.IsZero() {
		return ""
	}
	return "revoked on " + self.Revoked.Local().Format(time.DateTime) + "; to come back it needs an empty --data and a new token"
}

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
func (c *pingCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(c.Timeout), fmt.Errorf("ping %s: no answer within %s", c.Peer, time.Duration(c.Timeout)))
	defer cancel()
	var raw json.RawMessage
	var p api.Ping
	err := app.Ask(ctx, "GET", fmt.Sprintf("/api/peers/%s/ping?count=%d", url.PathEscape(c.Peer), c.Count), nil, &raw)
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err == nil {
		err = ask.Show(app, std, raw, pingTable)
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
	fmt.Fprintf(w, "%s\t%s\nway\t%s, at %s\n", cmp.Or(p.Name, "member"), p.ID+ask.Prefixed(" of farm ", p.Farm), p.Way, p.Path)
	for i, s := range p.RoundTrips {
		fmt.Fprintf(w, "answer %d\t%.2f ms\n", i+1, 1000*s)
	}
}
