package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// joinTimeout bounds a whole join.
const joinTimeout = 60 * time.Second

// Entry is how a member comes into its mesh.
type Entry struct {
	Dir string
	// Name is what this node calls itself.
	Name string
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

	identity trust.PrivateKey
}

// Enter returns this node's place in the mesh, and its key: those on record, or from
// redeeming the token, or of a new mesh, of which this node is the first admin.
func (e Entry) Enter(ctx context.Context) (State, trust.PrivateKey, error) {
	s, key, err := Look(e.Dir)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return e.first(ctx)
	case err != nil:
		return s, key, err
	}
	e.checkFarm(s)
	if err := durable.Remove(filepath.Join(e.Dir, enteringFile)); err != nil { // that a first start was ended before
		return s, key, err
	}
	if _, err := trust.LoadKey(filepath.Join(e.Dir, meshKeyFile)); err != nil && s.Founder {
		e.Log.Warn("the mesh's key is not on the node that founded it; `grange mesh import-key` brings it back", "file", filepath.Join(e.Dir, meshKeyFile))
	}
	if e.Join != "" {
		err = e.joinedAlready(s)
	}
	return s, key, err
}

// first enters with a new folder. The keys are on disk before anybody is told of them,
// and the membership, which makes the folder a member's, comes last: a crash before
// leaves what the next start goes on with.
func (e Entry) first(ctx context.Context) (s State, _ trust.PrivateKey, err error) {
	marker, path := filepath.Join(e.Dir, enteringFile), filepath.Join(e.Dir, identityFile)
	if err := durable.WriteFile(marker, nil, 0o600); err != nil {
		return s, e.identity, err
	}
	e.identity, err = trust.LoadKey(path)
	if errors.Is(err, content.ErrNotFound) {
		e.identity = trust.NewPrivateKey()
		err = trust.SaveKey(path, e.identity)
	}
	switch {
	case err != nil:
	case e.Join == "":
		s, err = e.found()
	default:
		s, err = e.join(ctx)
	}
	if err == nil {
		e.checkFarm(s)
		err = s.save(e.Dir)
	}
	if err != nil {
		return State{}, e.identity, err
	}
	s.Fresh = true
	return s, e.identity, durable.Remove(marker)
}

// checkFarm says so when the farm that was asked for is not that of the certificate.
func (e Entry) checkFarm(s State) {
	if farm := s.Chain.Identity().Farm; e.Farm != "" && e.Farm != farm {
		e.Log.Warn("--farm is ignored: it is for a node that founds a mesh, and this member is of another farm; join with a token of that farm and an empty --data to change it",
			"asked", e.Farm, "farm", farm)
	}
}

// joinedAlready lets a used token stay in the configuration, but none of another mesh.
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

// found makes a mesh, with the key that a start before left: none is written over.
func (e Entry) found() (State, error) {
	farm := cmp.Or(e.Farm, e.FarmDefault)
	path := filepath.Join(e.Dir, meshKeyFile)
	mesh, err := trust.LoadKey(path)
	fresh := errors.Is(err, content.ErrNotFound)
	if fresh {
		mesh = trust.NewPrivateKey()
	} else if err != nil {
		return State{}, fmt.Errorf("found mesh: %w", err)
	}
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: e.identity.Public(), Role: trust.RoleAdmin, Farm: farm}, e.Now())
	if err != nil {
		return State{}, fmt.Errorf("found mesh: %w", err)
	}
	secrets := trust.NewSecrets(1).For(trust.RoleAdmin, farm)
	rotation, err := trust.Signer{Key: e.identity, Chain: chain}.Rotate(secrets, farm, e.Now())
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
	if _, err := os.Stat(filepath.Join(e.Dir, meshKeyFile)); err == nil {
		return State{}, fmt.Errorf("--join: %w: a start before has begun to found a mesh in %s; give an empty --data", content.ErrConflict, e.Dir)
	}
	verifier := trust.NewVerifier(token.Mesh)
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var got papers
	var at string
	err = Visitor{e.identity, verifier, e.Now, e.Log}.Visit(ctx, func(ctx context.Context, s *swarm.Swarm, x *exchange.Exchange) (err error) {
		got, at, err = redeemAt(ctx, door{s, x}, redeemRequest{token.Invite, e.identity.Public(), e.Name}, slices.Concat(token.Bootstrap, e.Bootstrap))
		return err
	})
	if err != nil {
		return State{}, fmt.Errorf("--join: %w", err)
	}
	token.Bootstrap = append([]string{at}, slices.DeleteFunc(token.Bootstrap, func(a string) bool { return a == at })...)
	return e.accept(token, verifier, got)
}

// Visitor deals with members as a stranger to them, whatever its key.
type Visitor struct {
	Identity trust.PrivateKey
	Verifier *trust.Verifier
	Now      func() time.Time
	Log      *slog.Logger
}

// Visit calls fn with a host of its own, which listens nowhere.
func (v Visitor) Visit(ctx context.Context, fn func(context.Context, *swarm.Swarm, *exchange.Exchange) error) error {
	s, err := swarm.New(swarm.Config{Identity: v.Identity, Mesh: v.Verifier.Mesh(), Log: v.Log})
	if err != nil {
		return err
	}
	defer s.Close()
	x, err := exchange.New(exchange.Config{Host: s.Host(), Ledger: identity.New(v.Verifier, v.Now), Log: v.Log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	err = fn(ctx, s, x)
	cancel()
	return errors.Join(err, <-ended)
}

func (e Entry) accept(token trust.Token, verifier *trust.Verifier, got papers) (State, error) {
	id, err := verifier.Verify(got.Chain, e.Now())
	if err != nil || id.Key != e.identity.Public() {
		return State{}, fmt.Errorf("--join: the certificate that came back: %w", errors.Join(content.ErrForbidden, err))
	}
	if id.Role.IsMember() {
		if _, err := got.rotation(verifier, id, e.Now()); err != nil {
			return State{}, fmt.Errorf("--join: the secrets that came back: %w", err)
		}
	}
	// Those whom the token vouches for stay believed, whoever is revoked above them.
	roll := newRoll(filepath.Join(e.Dir, rollFile))
	for i := range got.Chain[1:] {
		roll.vouch(got.Chain[1+i:], e.Now())
	}
	if by, err := verifier.Verify(got.By, e.Now()); err == nil { // it may be gone before it is met again
		roll.heard(got.By, got.Name, by.Key, e.Now(), e.Now())
	}
	if err := roll.save(); err != nil {
		return State{}, err
	}
	e.Log.Info("joined a mesh", "mesh", token.Mesh, "role", id.Role, "farm", id.Farm)
	return State{Mesh: token.Mesh, Chain: got.Chain, Secrets: got.Secrets, Rotation: got.Rotation, Origin: token.Origin, Bootstrap: token.Bootstrap}, nil
}

// needed are files that a member must have, traces what else only a member leaves.
func needed() []string { return []string{identityFile, membershipFile} }

func traces() []string {
	return []string{meshKeyFile, invitesDir, revokedDir, rollFile, "peers", "records", "volumes", "cache", "origin/" + content.KeyMesh}
}

// lacks returns what a folder that has those of needed and traces lacks of a member; fresh is
// one that nobody has been a member with, though a first start may have been cut short: what
// that made is gone on with. Pure.
func lacks(has []string) (missing []string, fresh bool) {
	missing = slices.DeleteFunc(needed(), func(name string) bool { return slices.Contains(has, name) })
	entered := []string{enteringFile, identityFile, meshKeyFile, rollFile} // what a first start makes before the last, the membership
	begun := slices.Contains(has, enteringFile) && !slices.ContainsFunc(has, func(name string) bool { return !slices.Contains(entered, name) })
	return missing, len(missing) > 0 && (len(has) == 0 || begun)
}

// remains returns what of a member is in a folder. A folder in it that holds nothing,
// as one where a disk is to be mounted, is no trace.
func remains(dir string) (has []string, err error) {
	for _, name := range slices.Concat(needed(), traces(), []string{enteringFile}) {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			var files []os.DirEntry
			files, err = os.ReadDir(path)
			if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return !strings.HasPrefix(f.Name(), ".") && f.Name() != "lost+found" }) {
				continue
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("data folder: %w", err)
		}
		has = append(has, name)
	}
	return has, nil
}

// Look returns the place in the mesh and the key of the member that a data folder is
// of; ErrNotFound for one that nobody has been a member with. One of which a part is
// missing, damaged or another member's is ErrCorrupt: nobody enters a mesh with it,
// for that would write over what is left. It changes nothing.
func Look(dir string) (s State, key trust.PrivateKey, err error) {
	has, err := remains(dir)
	if err != nil {
		return s, key, err
	}
	switch missing, fresh := lacks(has); {
	case fresh:
		return s, key, fmt.Errorf("membership: %w", content.ErrNotFound)
	case len(missing) > 0: // as a backup may bring it back
		return s, key, fmt.Errorf("data folder %s: %w: it is a member's, with %s, and lacks %s; restore that from the same backup, or give an empty --data; it was left as it is",
			dir, content.ErrCorrupt, strings.Join(has, ", "), strings.Join(missing, " and "))
	}
	if s, err = load(dir); err == nil {
		key, err = trust.LoadKey(filepath.Join(dir, identityFile))
	}
	if err != nil {
		return s, key, err
	}
	if owner := s.Chain.Identity().Key; owner != key.Public() {
		return s, key, mixed(dir, identityFile, identity.PeerID(key.Public()).String(), identity.PeerID(owner).String())
	}
	mesh, err := trust.LoadKey(filepath.Join(dir, meshKeyFile))
	switch {
	case errors.Is(err, content.ErrNotFound): // it may be kept elsewhere
		return s, key, nil
	case err == nil && mesh.Public() != s.Mesh:
		err = mixed(dir, meshKeyFile, mesh.Public().String(), s.Mesh.String())
	}
	return s, key, err
}

func mixed(dir, file, of, want string) error {
	return fmt.Errorf("data folder %s: %w: its %s is of %s, and its %s of %s; restore both from one backup; it was left as it is",
		dir, content.ErrCorrupt, file, of, membershipFile, want)
}

// The files of a member in its data folder. Losing identity or membership means joining
// again; losing the mesh key, that no admin can be made once none is left.
const (
	identityFile   = "identity.key"
	meshKeyFile    = "mesh.key"
	membershipFile = "membership"
	invitesDir     = "invites"
	revokedDir     = "revoked"
	rollFile       = "roll"
	// enteringFile is there until the first start is through, and what is here its own.
	enteringFile = "entering"
)

// State is what a member keeps of its own place in the mesh.
type State struct {
	Magic   string          `cbor:"magic"`
	Mesh    trust.PublicKey `cbor:"mesh"`
	Chain   trust.Chain     `cbor:"chain"`
	Secrets trust.Secrets   `cbor:"secrets"`
	// Former are the secrets before, good for formerFor since Rotated, in Unix ms.
	Former  trust.Secrets `cbor:"former"`
	Rotated int64         `cbor:"rotated"`
	// Rotation is an admin's word that Secrets are those of this farm.
	Rotation []byte `cbor:"rotation"`
	// Origin is the URL of the mesh's origin: a token's word, or a founder's, until this
	// member has Seen it to be the mesh's; then the one that was seen last.
	Origin    string   `cbor:"origin"`
	Seen      bool     `cbor:"seen"`
	Bootstrap []string `cbor:"bootstrap"`
	// Place are the addresses that the member was last served at.
	Place []string `cbor:"place"`
	// Founder says that this member made the mesh.
	Founder bool `cbor:"founder"`

	// Fresh says that the member has just founded or joined.
	Fresh bool `cbor:"-"`
}

const stateMagic = "grange-membership/3"

func (s State) save(dir string) error {
	s.Magic = stateMagic
	b, err := content.NewCodec().Marshal(s)
	if err != nil {
		return fmt.Errorf("membership: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, membershipFile), b, 0o600)
}

func load(dir string) (State, error) {
	path := filepath.Join(dir, membershipFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return State{}, fmt.Errorf("membership: %w", err)
	}
	var s State
	if err := content.NewCodec().Unmarshal(b, &s); err != nil || s.Magic != stateMagic {
		return State{}, fmt.Errorf("membership %s: %w; restore it from a backup, or join again with an empty --data", path, errors.Join(content.ErrCorrupt, err))
	}
	return s, nil
}

// In reports whether a folder is that of a member already, which needs no token.
func In(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, membershipFile))
	return err == nil
}

// former returns the secrets before the last rotation, as long as they are good.
func (s State) former(now time.Time, good time.Duration) (trust.Secrets, bool) {
	age := now.Sub(time.UnixMilli(s.Rotated))
	return s.Former, s.Former != (trust.Secrets{}) && age >= 0 && age < good
}
