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

	"filippo.io/age"
	"golang.org/x/term"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/trust"
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

func (c *meshPeersCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/peers"}, func(w io.Writer, p api.Peers) {
		fmt.Fprintln(w, "NAME\tFARM\tROLE\tSTATE\tPATH\tID")
		row := func(m api.Peer) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(m.Name, "-"), cmp.Or(m.Farm, "-"), m.Role, m.State, cmp.Or(m.Path, "-"), m.ID)
		}
		row(api.Peer{ID: p.Self.ID, Name: p.Self.Name, Farm: p.Self.Farm, Role: p.Self.Role, State: "this node"})
		for _, m := range p.Peers {
			row(m)
		}
	})
}

type meshMembersCmd struct{}

func (c *meshMembersCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/members"}, membersTable)
}

func membersTable(w io.Writer, members []api.Member) {
	fmt.Fprintln(w, "NAME\tFARM\tROLE\tSTATE\tLAST SEEN\tPATH\tID")
	for _, m := range members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(m.Name, "-"), cmp.Or(m.Farm, "-"), cmp.Or(m.Role, "-"), m.State, moment(m.LastSeen), cmp.Or(m.Path, "-"), m.ID)
	}
}

type meshRevokeCmd struct {
	Member string `arg:"" help:"ID, public key or name of the member, or the beginning of one that is nobody else's; or the ID of a token: it is made useless, or the member revoked that joined with it."`
	Myself bool   `env:"-" help:"Revoke this node itself."`
}

func (c *meshRevokeCmd) Run(ctx context.Context, app *cli, std stdio) error {
	path := "/api/members/" + url.PathEscape(c.Member)
	if c.Myself {
		path += "?myself=true"
	}
	return tell(ctx, app, std, request{method: "DELETE", path: path}, func(w io.Writer, r api.Revoked) {
		if r.Member.Key.IsZero() {
			fmt.Fprintf(w, "token %s is useless now; nobody had joined with it\n", r.Token)
			return
		}
		fmt.Fprintf(w, "revoked %s %s, %s of farm %s; it was told to %s, the others will hear of it from the first that they meet\n",
			r.Member.ID, r.Member.Name, cmp.Or(r.Member.Role, "unknown"), cmp.Or(r.Member.Farm, "?"), count(r.Told, "connected member"))
		fmt.Fprintln(w, "`grange mesh rotate` changes the secrets that it knows")
	})
}

type meshRotateCmd struct{}

func (c *meshRotateCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "POST", path: "/api/mesh/rotate"}, func(w io.Writer, r api.Rotated) {
		fmt.Fprintf(w, "the secrets are of generation %d now; members that are away get them when they are back\n", r.Generation)
	})
}

type exportKeyCmd struct {
	File           string `arg:"" help:"Where to write it, readable by you only; - is the standard output."`
	Passphrase     bool   `env:"-" help:"Ask for a passphrase and encrypt the file with it, as age does."`
	PassphraseFile string `env:"-" help:"Encrypt with the passphrase in a file." placeholder:"FILE"`
}

func (c *exportKeyCmd) Run(ctx context.Context, app *cli, std stdio) error {
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
	if err := app.ask(ctx, "GET", "/api/mesh/key", nil, &key); err != nil {
		return err
	}
	sealed, err := sealKey(key.Key, phrase)
	if err != nil {
		return err
	}
	if c.File == "-" {
		if app.JSON {
			return json.NewEncoder(std.out).Encode(api.MeshKey{Key: string(sealed)})
		}
		_, err := std.out.Write(sealed)
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
	return show(app, std, nil, said("the mesh key is in %s: %s rules the mesh", c.File, who))
}

type importKeyCmd struct {
	File           string `arg:"" help:"What export-key wrote; - is the standard input."`
	PassphraseFile string `env:"-" help:"Where the passphrase of an encrypted file stands; it is asked for when not given." placeholder:"FILE"`
}

func (c *importKeyCmd) Run(ctx context.Context, app *cli, std stdio) error {
	sealed, err := std.read(c.File)
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
	return tell(ctx, app, std, request{"PUT", "/api/mesh/key", api.MeshKey{Key: text}}, said("this node has the mesh key, and is an admin"))
}

const (
	// secretMax bounds a file that holds a key, a token or a passphrase.
	secretMax = 64 << 10
	ageMagic  = "age-encryption.org/"
)

// sealKey encrypts a key with a passphrase, if there is one.
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
	b, err := io.ReadAll(io.LimitReader(r, secretMax))
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	return string(b), nil
}

// passphrase asks for one or reads a file; "" is none. All could see an argument.
func passphrase(std stdio, ask bool, file string) (string, error) {
	switch {
	case file != "":
		b, err := std.readSecret(file)
		if err == nil && b == "" {
			err = errors.New("it is empty")
		}
		if err != nil {
			return "", fmt.Errorf("passphrase in %s: %w", file, err)
		}
		return b, nil
	case ask:
		return prompt(std, "passphrase: ")
	}
	return "", nil
}

// prompt asks on the terminal, without showing what is typed.
func prompt(std stdio, text string) (string, error) {
	in, ok := std.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", fmt.Errorf("%w: the passphrase is asked for on a terminal, and there is none; use --passphrase-file", errUsage)
	}
	fmt.Fprint(std.err, text)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(std.err)
	if err == nil && len(b) == 0 {
		err = errors.New("the passphrase is empty")
	}
	return string(b), err
}

// fromStdin stands for the standard input, in the place of a file.
const fromStdin = "-"

// read reads a small file, or the standard input.
func (s stdio) read(path string) ([]byte, error) {
	in := s.in
	if path != fromStdin {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, secretMax))
}

// readSecret reads what is in one without the white space around it.
func (s stdio) readSecret(path string) (string, error) {
	b, err := s.read(path)
	return strings.TrimSpace(string(b)), err
}
