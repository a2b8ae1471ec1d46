package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// Invite is the single-use part of a token.
type Invite struct {
	ID     [8]byte  `cbor:"id"`
	Secret [16]byte `cbor:"secret"`
}

// InviteState is what the issuer knows of one invite, without its secret.
type InviteState struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"`
	Role    Role      `json:"role"`
	Farm    string    `json:"farm,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// UsedBy is the key that redeemed it.
	UsedBy *PublicKey `json:"used_by,omitempty"`
	UsedAt time.Time  `json:"used_at,omitzero"`
	// Chain is the encoded certificate that it became.
	Chain   []byte `json:"chain,omitempty"`
	Revoked bool   `json:"revoked,omitempty"`
}

// Invites is the ledger of the invites that one admin issued: a folder with a
// file for each. Safe for concurrent use within one process.
type Invites struct {
	dir string
	mu  sync.Mutex // serialises changes, so that an invite is used once
}

const (
	// invitesMax bounds the ledger: a farm of ten thousand nodes, no runaway script.
	invitesMax = 100_000
	// InviteLifetime is how long an unused invite is good when nothing is said.
	InviteLifetime = 24 * time.Hour
	// redeemAgain is how long after its use an invite still answers the member that
	// used it, whose reply may have been lost: as long as a newcomer goes on trying.
	// A key that is stolen later gets nothing for an old token.
	redeemAgain  = 10 * time.Minute
	inviteSuffix = ".json"
)

// OpenInvites opens the ledger in dir, which is made if absent.
func OpenInvites(dir string) (*Invites, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("invites: %w", err)
	}
	return &Invites{dir: dir}, nil
}

// Create records a new invite durably. A full ledger first forgets those that expired.
func (l *Invites) Create(role Role, farm string, now time.Time, lifetime time.Duration) (Invite, InviteState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.makeRoom(invitesMax, now); err != nil {
		return Invite{}, InviteState{}, fmt.Errorf("create invite: %w", err)
	}
	var inv Invite
	rand.Read(inv.ID[:])
	rand.Read(inv.Secret[:])
	hash := sha256.Sum256(inv.Secret[:])
	st := InviteState{ID: hex.EncodeToString(inv.ID[:]), Hash: hash[:], Role: role, Farm: farm, Created: now, Expires: now.Add(lifetime)}
	return inv, st, l.save(st)
}

// makeRoom forgets the invites that expired if there are limit or more on record.
func (l *Invites) makeRoom(limit int, now time.Time) error {
	files, err := os.ReadDir(l.dir)
	if err != nil || len(files) < limit {
		return err
	}
	all, err := l.List()
	if err != nil {
		return err
	}
	left := len(all)
	for _, st := range all {
		if now.After(st.Expires) {
			if err := os.Remove(l.path(st.ID)); err != nil {
				return err
			}
			left--
		}
	}
	if left >= limit {
		return fmt.Errorf("%w: %d invites are good or used and not a lifetime old; wait until some expire", content.ErrNoSpace, left)
	}
	return nil
}

// Redeem uses the invite for subject: the certificate that issue makes for it is on
// disk when Redeem returns. The same subject may ask again for redeemAgain, as after a
// lost reply, and gets the same; anybody else, or later, gets ErrForbidden.
func (l *Invites) Redeem(inv Invite, subject PublicKey, now time.Time, issue func(Identity) (Chain, error)) (Chain, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, err := l.load(hex.EncodeToString(inv.ID[:]))
	if errors.Is(err, content.ErrNotFound) {
		return nil, fmt.Errorf("redeem invite: %w: unknown here; use the token with the admin that made it", content.ErrForbidden)
	}
	if err != nil {
		return nil, err
	}
	codec := content.NewCodec()
	again, err := st.admit(inv, subject, now)
	if again {
		var chain Chain
		if err = codec.Unmarshal(st.Chain, &chain); err == nil {
			return chain, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("redeem invite %s: %w", st.ID, err)
	}
	chain, err := issue(Identity{subject, st.Role, st.Farm})
	if err != nil {
		return nil, err
	}
	st.UsedBy, st.UsedAt = &subject, now
	if st.Chain, err = codec.Marshal(chain); err != nil {
		return nil, fmt.Errorf("redeem invite %s: %w", st.ID, err)
	}
	return chain, l.save(st)
}

// admit says whether subject may use the invite, and whether it did before.
func (st InviteState) admit(inv Invite, subject PublicKey, now time.Time) (again bool, err error) {
	hash := sha256.Sum256(inv.Secret[:])
	used := st.UsedBy != nil
	switch {
	case subtle.ConstantTimeCompare(hash[:], st.Hash) != 1:
		return false, fmt.Errorf("%w: wrong secret", content.ErrForbidden)
	case st.Revoked:
		return false, fmt.Errorf("%w: it was revoked", content.ErrForbidden)
	case used && *st.UsedBy == subject && !now.After(st.UsedAt.Add(redeemAgain)):
		return true, nil
	case used:
		return false, fmt.Errorf("%w: it was used on %s; a token is good once", content.ErrForbidden, st.UsedAt.UTC().Format(time.RFC3339))
	case now.After(st.Expires):
		return false, fmt.Errorf("%w: it expired on %s", content.ErrForbidden, st.Expires.UTC().Format(time.RFC3339))
	}
	return false, nil
}

// Revoke makes an unused invite useless. A used one is ErrConflict: its member
// is revoked by its key instead. What is on record of it is returned in both cases.
func (l *Invites) Revoke(id string) (InviteState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, err := l.load(id)
	if err != nil {
		return st, err
	}
	if st.UsedBy != nil {
		return st, fmt.Errorf("revoke invite %s: %w: member %s used it; revoke the member", id, content.ErrConflict, st.UsedBy)
	}
	st.Revoked = true
	return st, l.save(st)
}

// List returns all invites on record, oldest first.
func (l *Invites) List() ([]InviteState, error) {
	files, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("list invites: %w", err)
	}
	var out []InviteState
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), inviteSuffix)
		if !ok || strings.HasPrefix(id, ".") {
			continue
		}
		st, err := l.load(id)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b InviteState) int { return a.Created.Compare(b.Created) })
	return out, nil
}

func (l *Invites) path(id string) string { return filepath.Join(l.dir, id+inviteSuffix) }

func (l *Invites) save(st InviteState) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err == nil {
		err = durable.WriteFile(l.path(st.ID), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("record invite %s: %w", st.ID, err)
	}
	return nil
}

func (l *Invites) load(id string) (InviteState, error) {
	if b, err := hex.DecodeString(id); err != nil || len(b) != len(Invite{}.ID) {
		return InviteState{}, fmt.Errorf("invite %.40q: %w: want 16 hex digits", id, content.ErrInvalid)
	}
	b, err := os.ReadFile(l.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = content.ErrNotFound
	}
	if err != nil {
		return InviteState{}, fmt.Errorf("invite %s: %w", id, err)
	}
	var st InviteState
	if err := json.Unmarshal(b, &st); err != nil {
		return InviteState{}, fmt.Errorf("invite %s: %w: %w", id, content.ErrCorrupt, err)
	}
	return st, nil
}

// Token is what a newcomer needs to join: where the mesh is, how to know it, and the
// invite that an admin redeems into a certificate and secrets. In text it is "grange1"
// and base64url; a secret until it was used, it tells nothing but addresses after.
type Token struct {
	Mesh PublicKey `cbor:"mesh"`
	// Origin is the URL of the origin, without credentials.
	Origin string `cbor:"origin"`
	// Bootstrap are full multiaddrs of members, those that can redeem first.
	Bootstrap []string `cbor:"bootstrap"`
	Invite    Invite   `cbor:"invite"`
	Role      Role     `cbor:"role"`
	Farm      string   `cbor:"farm"`
	// Expires is in Unix seconds.
	Expires int64 `cbor:"expires"`
}

const (
	tokenPrefix = "grange1"
	// tokenSizeMax bounds the text, so that a wrong paste is not decoded.
	tokenSizeMax = 16 << 10
	// tokenCheckSize bytes of hash at the end tell damage from another version.
	tokenCheckSize = 4
)

// String returns the text form.
func (t Token) String() string {
	b, err := content.NewCodec().Marshal(t)
	if err != nil { // every field can always be encoded
		panic(fmt.Sprintf("trust: encode token: %v", err))
	}
	sum := content.Sum(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenCheckSize]...))
}

// ParseToken reads the text form; any other is ErrInvalid, an expired one ErrForbidden.
func ParseToken(s string, now time.Time) (Token, error) {
	s = strings.TrimSpace(s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > tokenSizeMax {
		return Token{}, fmt.Errorf("join token: %w: it should begin with %q; make one with `grange token create`", content.ErrInvalid, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	end := max(0, len(b)-tokenCheckSize)
	sum := content.Sum(b[:end])
	if err != nil || end == 0 || string(b[end:]) != string(sum[:tokenCheckSize]) {
		return Token{}, fmt.Errorf("join token: %w: damaged or cut short; copy it whole", content.ErrInvalid)
	}
	var t Token
	if err := content.NewCodec().Unmarshal(b[:end], &t); err != nil {
		return Token{}, fmt.Errorf("join token: %w: %w", content.ErrInvalid, err)
	}
	if _, err := ParseRole(string(t.Role)); err != nil {
		return Token{}, fmt.Errorf("join token: %w", err)
	}
	if expires := time.Unix(t.Expires, 0); now.After(expires) {
		return Token{}, fmt.Errorf("join token: %w: it expired on %s, and by the clock here it is %s; ask an admin for a new one", content.ErrForbidden,
			expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return t, nil
}
