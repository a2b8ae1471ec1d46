package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// joinTimeout bounds a whole join.
const joinTimeout = 60 * time.Second

// Entry is how a member comes into its mesh.
type Entry struct {
	Dir      string
	Identity trust.PrivateKey
	// Join is a token; empty founds a mesh when Dir is new.
	Join string
	// Farm is asked for by name; FarmDefault is that of a founder that asks for none.
	Farm, FarmDefault string
	// Origin is that of a founder.
	Origin string
	// Bootstrap are addresses beside the token's.
	Bootstrap []string
	Now       func() time.Time
	Log       *slog.Logger
}

// Enter returns this node's place in the mesh: the one on record, one from redeeming
// the token, or that of a new mesh, of which this node is the first admin.
func (e Entry) Enter(ctx context.Context) (State, error) {
	s, err := load(e.Dir)
	if err == nil {
		e.checkFarm(s)
	}
	switch {
	case err == nil && e.Join != "":
		return s, e.joinedAlready(s)
	case err == nil || !errors.Is(err, content.ErrNotFound):
		return s, err
	case wasMember(e.Dir):
		return s, fmt.Errorf("%s: %w: it is the folder of a member, and its file %q is gone; restore that from a backup, or give an empty --data", e.Dir, content.ErrCorrupt, membershipFile)
	case e.Join != "":
		s, err = e.join(ctx)
	default:
		s, err = e.found()
	}
	if err != nil {
		return State{}, err
	}
	s.Fresh = true
	e.checkFarm(s)
	return s, s.save(e.Dir)
}

// checkFarm says so when the farm that was asked for is not the member's: it stands in
// its certificate.
func (e Entry) checkFarm(s State) {
	if farm := s.Chain.Identity().Farm; e.Farm != "" && e.Farm != farm {
		e.Log.Warn("--farm is ignored: it is for a node that founds a mesh, and this member is of another farm; join with a token of that farm and an empty --data to change it",
			"asked", e.Farm, "farm", farm)
	}
}

// joinedAlready lets the token stay in the configuration of a node that it has
// brought in, and refuses one of another mesh.
func (e Entry) joinedAlready(s State) error {
	token, err := trust.ParseToken(e.Join, time.Time{})
	if err != nil {
		return err
	}
	if token.Mesh != s.Mesh {
		return fmt.Errorf("--join: %w: %s belongs to mesh %s, the token to mesh %s; give an empty --data to join that one", content.ErrConflict, e.Dir, s.Mesh, token.Mesh)
	}
	return nil
}

// Fits fails with ErrConflict for a token of another mesh than the one that the folder's
// member is of; a folder of no member fits each token.
func Fits(dir, token string) error {
	s, err := load(dir)
	if err != nil {
		return nil
	}
	return Entry{Dir: dir, Join: token}.joinedAlready(s)
}

// found makes a mesh. The mesh key is on disk before the membership that makes
// it this node's, and a crash between leaves a key that the next start uses: one that
// is there is never written over.
func (e Entry) found() (State, error) {
	farm := e.Farm
	if farm == "" {
		farm = e.FarmDefault
	}
	path := filepath.Join(e.Dir, meshKeyFile)
	mesh, err := trust.LoadKey(path)
	fresh := errors.Is(err, content.ErrNotFound)
	if fresh {
		mesh = trust.NewPrivateKey()
	} else if err != nil {
		return State{}, fmt.Errorf("found mesh: %w", err)
	}
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Grant{Subject: e.Identity.Public(), Role: trust.RoleAdmin, Farm: farm}, e.Now())
	if err != nil {
		return State{}, fmt.Errorf("found mesh: %w", err)
	}
	secrets := trust.NewSecrets(1).For(trust.RoleAdmin, farm)
	rotation, err := trust.Signer{Key: e.Identity, Chain: chain}.Rotate(secrets, farm, e.Now())
	if err != nil {
		return State{}, err
	}
	if fresh {
		if err := trust.SaveKey(path, mesh); err != nil {
			return State{}, fmt.Errorf("found mesh: %w", err)
		}
	}
	e.Log.Info("founded a mesh", "mesh", mesh.Public(), "farm", farm)
	return State{Mesh: mesh.Public(), Chain: chain, Secrets: secrets, Rotation: rotation, Origin: e.Origin, Founder: true}, nil
}

// join redeems a token with the members that it names.
func (e Entry) join(ctx context.Context) (State, error) {
	token, err := trust.ParseToken(e.Join, e.Now())
	if err != nil {
		return State{}, fmt.Errorf("--join: %w", err)
	}
	s, err := swarm.New(swarm.Config{Identity: e.Identity, Mesh: token.Mesh, Log: e.Log})
	if err != nil {
		return State{}, err
	}
	defer s.Close()
	verifier := trust.NewVerifier(token.Mesh)
	x, err := exchange.New(exchange.Config{Host: s.Host(), Verifier: verifier, Now: e.Now, Log: e.Log})
	if err != nil {
		return State{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	addrs := slices.Concat(token.Bootstrap, e.Bootstrap)
	got, at, err := redeemAt(ctx, door{s, x}, redeemRequest{token.Invite, e.Identity.Public()}, addrs)
	cancel()
	if err = errors.Join(err, <-ended); err != nil {
		return State{}, fmt.Errorf("--join: %w", err)
	}
	token.Bootstrap = append([]string{at}, slices.DeleteFunc(token.Bootstrap, func(a string) bool { return a == at })...)
	return e.accept(token, verifier, got)
}

// accept checks what came for a token: a certificate for this key, and secrets that an
// admin has signed for.
func (e Entry) accept(token trust.Token, verifier *trust.Verifier, got redeemReply) (State, error) {
	id, err := verifier.Verify(got.Chain, e.Now())
	if err != nil || id.Key != e.Identity.Public() {
		return State{}, fmt.Errorf("--join: the certificate that came back: %w", errors.Join(content.ErrForbidden, err))
	}
	if id.Role.IsMember() {
		rotation, err := verifier.OpenRotation(got.Rotation, e.Now())
		if err == nil {
			err = rotation.Admit(got.Secrets, id.Role, id.Farm)
		}
		if err != nil {
			return State{}, fmt.Errorf("--join: the secrets that came back: %w", err)
		}
	}
	// Those whom the token vouches for stay believed, whoever is revoked above them.
	roll := newRoll(filepath.Join(e.Dir, rollFile))
	for i := range got.Chain[1:] {
		roll.vouch(got.Chain[1+i:], e.Now())
	}
	if err := roll.save(); err != nil {
		return State{}, err
	}
	e.Log.Info("joined a mesh", "mesh", token.Mesh, "role", id.Role, "farm", id.Farm)
	return State{Mesh: token.Mesh, Chain: got.Chain, Secrets: got.Secrets, Rotation: got.Rotation, Origin: token.Origin, Bootstrap: token.Bootstrap}, nil
}
