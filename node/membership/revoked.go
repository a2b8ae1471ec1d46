package membership

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

const (
	// revokedMax bounds the revocations that are known: what a large mesh loses in many
	// years, 20 MB. Over it none is taken: the mesh is to be founded anew.
	revokedMax = 10_000
	// revokedByMax is how many of them one admin may use up, with those that it made
	// admins: one gone bad leaves others the room to revoke it.
	revokedByMax = revokedMax / 2
	// storeInterval is how often a lonely member compares revocations with the origin's.
	storeInterval = time.Minute
	// storeSpread is the time over which those who hear of a revocation look whether
	// the origin has it: who made it may not write there.
	storeSpread = 10 * time.Minute
	// storeTimeout bounds one look at the origin.
	storeTimeout = 30 * time.Second
)

// revoked is a revocation and when this member learnt of it, on disk and as told.
type revoked struct {
	Sealed []byte `cbor:"sealed"`
	// Learnt is in Unix nanoseconds.
	Learnt int64 `cbor:"learnt"`
	// Taken is when this member took it, or the store had it, in Unix nanoseconds: in
	// that order revocations count. It says nothing to others.
	Taken int64 `cbor:"taken"`

	root trust.PublicKey // as trust.Revocation has it
}

// claim is a revocation that somebody handed over. seen is when the store had it first;
// zero is now. learnt is when the member that told it learnt of it, as it says: one
// that is new, or was away, counts from there, as far as it was away, for it cannot
// have seen before what was signed since; nobody has the word on what went on while it
// was here. That says nothing of whether its signer was an admin still.
type claim struct {
	sealed       []byte
	seen, learnt time.Time
}

// since is from when a revocation counts for a member that first hears of it: from when
// the one that tells it learnt of it, and for what the store has, which may have been
// written there anew, from its making; before that nobody learnt of it.
// Who was here, up to caught, would have learnt of it before.
func (t claim) since(made, caught time.Time) time.Time {
	at := slices.MaxFunc([]time.Time{t.learnt, made, caught}, time.Time.Compare)
	return slices.MinFunc([]time.Time{at, t.seen}, time.Time.Compare)
}

func toldBy(list []revoked) []claim {
	out := make([]claim, len(list))
	for i, n := range list {
		out[i] = claim{sealed: n.Sealed, learnt: time.Unix(0, n.Learnt)}
	}
	return out
}

func (m *Membership) loadRevoked() error {
	dir := filepath.Join(m.cfg.Dir, revokedDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return fmt.Errorf("revocations: %w", err)
		}
		var r revoked
		var opened trust.Revocation
		key, err := trust.ParsePublicKey(f.Name())
		if err == nil {
			err = m.codec.Unmarshal(b, &r)
		}
		if err == nil { // nobody is revoked yet, so each counts that counted when it was learnt
			opened, err = m.verifier.OpenRevocation(r.Sealed, time.Unix(0, r.Learnt), m.cfg.Now())
		}
		if err != nil { // to go on would be to trust whom it is about
			return fmt.Errorf("revocation %s: %w; remove the file, and the mesh will tell again", filepath.Join(dir, f.Name()), errors.Join(content.ErrCorrupt, err))
		}
		r.root = opened.Root
		m.revoked[key] = r
		m.spent[r.root]++
	}
	return nil
}

// install has the verifier, and the digest, follow the revocations that are known.
func (m *Membership) install() {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make(map[trust.PublicKey]time.Time, len(m.revoked))
	for key, r := range m.revoked {
		keys[key] = time.Unix(0, r.Learnt)
	}
	m.verifier.Revoke(keys)
}

// learn takes revocations, each as far as its signer is believed at that point: on disk
// first, then in force, then passed on. It returns how many were news.
func (m *Membership) learn(list []claim) int {
	if len(list) == 0 {
		return 0
	}
	var fresh []trust.PublicKey
	var news []revoked
	changed := false
	m.changing.Lock()
	for _, t := range list {
		key, entry, had, err := m.learnOne(t)
		if err != nil {
			m.cfg.Log.Debug("a revocation is not taken", "err", err)
			continue
		}
		changed = changed || !key.IsZero()
		if !key.IsZero() && !had {
			fresh, news = append(fresh, key), append(news, entry)
			m.reopen(time.Unix(0, entry.Learnt))
		}
	}
	m.changing.Unlock()
	if len(fresh) > 0 {
		m.mu.Lock()
		m.digest = digestOf(m.revoked)
		m.news = append(m.news, news...)
		if m.owed.IsZero() {
			m.owed = m.cfg.Now().Add(rand.N(storeSpread))
		}
		m.mu.Unlock()
		if err := m.roll.save(); err != nil { // who was met before has to be known after a restart
			m.cfg.Log.Warn("who was met before a revocation may be forgotten", "err", err)
		}
		for _, key := range fresh {
			m.cfg.Log.Warn("a member was revoked", "peer", identity.PeerID(key), "self", key == m.cfg.Identity.Public())
		}
		nudge(m.wake)
		nudge(m.seek)
	}
	if changed {
		m.cfg.OnRevoked(fresh)
	}
	return len(fresh)
}

// learnOne takes one; the zero key says that nothing is new in it, had that the key was
// revoked before: as of later, or by a lesser word. Called with changing.
func (m *Membership) learnOne(t claim) (key trust.PublicKey, entry revoked, had bool, err error) {
	now := m.cfg.Now()
	if t.seen.IsZero() || t.seen.After(now) {
		t.seen = now
	}
	r, err := m.verifier.OpenRevocation(t.sealed, t.seen, now)
	if err != nil {
		return key, entry, false, err
	}
	mesh := m.verifier.Mesh()
	m.mu.RLock()
	old, had := m.revoked[r.Key]
	full := len(m.revoked) >= revokedMax || r.Root != mesh && m.spent[r.Root] >= revokedByMax
	m.mu.RUnlock()
	learnt := t.seen
	if !had {
		learnt = t.since(r.SignedAt, m.roll.caughtUp())
	}
	firmer := had && (r.Root == mesh && old.root != mesh || m.voidNow(old, now))
	switch {
	case had && !firmer && learnt.UnixNano() >= old.Learnt:
		return key, entry, true, nil
	case !had && full:
		m.cfg.Log.Error("a revocation is not taken: there are too many; the mesh has to be founded anew", "peer", identity.PeerID(r.Key), "limit", revokedMax)
		return key, entry, false, fmt.Errorf("%w: %d revocations", content.ErrNoSpace, revokedMax)
	}
	entry = revoked{Sealed: t.sealed, Learnt: learnt.UnixNano(), Taken: t.seen.UnixNano(), root: r.Root}
	if had {
		entry.Learnt, entry.Taken = min(entry.Learnt, old.Learnt), min(entry.Taken, old.Taken)
	}
	if had && !firmer {
		entry.Sealed, entry.root = old.Sealed, old.root
	}
	if err := m.keep(r.Key, entry); err != nil { // in force all the same, until a restart
		m.cfg.Log.Error("a revocation is not on disk", "peer", identity.PeerID(r.Key), "err", err)
	}
	m.mu.Lock()
	if had {
		m.spent[old.root]--
	}
	m.spent[entry.root]++
	m.revoked[r.Key] = entry
	m.mu.Unlock()
	m.install()
	return r.Key, entry, had, nil
}

// keep brings a revocation on disk.
func (m *Membership) keep(key trust.PublicKey, r revoked) error {
	b, err := m.codec.Marshal(r)
	if err != nil {
		return err
	}
	dir := filepath.Join(m.cfg.Dir, revokedDir)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, key.String()), b, 0o600)
}

// voidNow reports whether the revocation's signer has been revoked since.
func (m *Membership) voidNow(r revoked, now time.Time) bool {
	_, err := m.verifier.OpenRevocation(r.Sealed, now, now)
	return err != nil
}

// countersign makes another admin's revocations, which this one took while the other
// was an admin, this one's too: who comes later would not take them any more.
func (m *Membership) countersign(signer trust.Signer) ([]revoked, error) {
	now := m.cfg.Now()
	m.mu.RLock()
	var keys []trust.PublicKey
	for key, r := range m.revoked {
		if m.voidNow(r, now) {
			keys = append(keys, key)
		}
	}
	m.mu.RUnlock()
	var list []claim
	var out []revoked
	for _, key := range keys {
		sealed, err := signer.RevokeKey(key, now)
		if err != nil {
			return nil, err
		}
		list, out = append(list, claim{sealed: sealed}), append(out, revoked{Sealed: sealed, Learnt: now.UnixNano()})
	}
	m.learn(list)
	return out, nil
}

// reopen drops revocations taken since one more admin was revoked, and that one's: this
// member was away, and met the one gone bad first. Called with changing.
func (m *Membership) reopen(since time.Time) {
	m.mu.RLock()
	var void []trust.PublicKey
	for key, r := range m.revoked {
		if taken := time.Unix(0, r.Taken); !taken.Before(since) && m.voidNow(r, taken) {
			void = append(void, key)
		}
	}
	m.mu.RUnlock()
	for _, key := range void {
		m.cfg.Log.Warn("a member is one again: who had revoked it had been revoked before", "peer", identity.PeerID(key))
		if err := durable.Remove(filepath.Join(m.cfg.Dir, revokedDir, key.String())); err != nil {
			m.cfg.Log.Error("a revocation that no longer counts is still on disk", "key", key, "err", err)
		}
		m.mu.Lock()
		m.spent[m.revoked[key].root]--
		delete(m.revoked, key)
		m.mu.Unlock()
	}
	if len(void) > 0 {
		m.install()
	}
}

// digestOf is the same for the same keys.
func digestOf(all map[trust.PublicKey]revoked) [32]byte {
	h := sha256.New()
	for _, key := range slices.SortedFunc(maps.Keys(all), compareKeys) {
		h.Write(key[:])
	}
	return [32]byte(h.Sum(nil))
}

type revokedRequest struct {
	Have []trust.PublicKey `cbor:"have"`
}

// revokedReply has some of what the asker lacks, and the keys of what the other does.
type revokedReply struct {
	News []revoked         `cbor:"news"`
	Want []trust.PublicKey `cbor:"want"`
}

// lacking answers with revocations that the asker does not have.
func (m *Membership) lacking(q revokedRequest) (r revokedReply, err error) {
	if len(q.Have) > revokedMax {
		return r, fmt.Errorf("revocations: %w: %d keys", content.ErrInvalid, len(q.Have))
	}
	theirs := make(map[trust.PublicKey]bool, len(q.Have))
	for _, key := range q.Have {
		theirs[key] = true
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for key, known := range m.revoked {
		if !theirs[key] && len(r.News) < newsMax {
			r.News = append(r.News, known)
		}
		delete(theirs, key)
	}
	r.Want = slices.Collect(maps.Keys(theirs))
	return r, nil
}

// even brings two members to the same revocations, as far as each believes them.
func (m *Membership) even(ctx context.Context, id peer.ID) error {
	for {
		m.mu.RLock()
		have := slices.Collect(maps.Keys(m.revoked))
		m.mu.RUnlock()
		var r revokedReply
		if err := m.call(ctx, id, revokedMethod, revokedRequest{have}, &r); err != nil {
			return err
		}
		if m.learn(toldBy(r.News[:min(len(r.News), newsMax)])) == 0 || len(r.News) < newsMax {
			return m.give(ctx, id, r.Want)
		}
	}
}

// give tells a member of the revocations of those keys.
func (m *Membership) give(ctx context.Context, id peer.ID, want []trust.PublicKey) error {
	var news []revoked
	m.mu.RLock()
	for _, key := range want[:min(len(want), revokedMax)] {
		if r, ok := m.revoked[key]; ok {
			news = append(news, r)
		}
	}
	m.mu.RUnlock()
	for part := range slices.Chunk(news, newsMax) {
		var g greeting
		if err := m.call(ctx, id, greetMethod, m.greeting(part), &g); err != nil {
			return err
		}
	}
	return nil
}

// keepStored reads the origin's revocations when it first answers, or is back, and
// while no member would tell; and brings it those that it lacks. Until ctx ends.
func (m *Membership) keepStored(ctx context.Context) {
	var looked time.Time
	here := false
	every(ctx, contactInterval, nil, func() {
		c, writable := m.cfg.Catalog()
		alone := time.Since(looked) >= storeInterval && len(m.connected()) == 0
		if c != nil && (!here || alone || m.owes()) {
			looked = time.Now()
			if err := m.compareStore(ctx, c, writable); err != nil && ctx.Err() == nil {
				m.cfg.Log.Debug("revocations at the origin", "err", err)
			}
		}
		here = c != nil
	})
}

// owes reports whether it is time to look if the origin has all revocations.
func (m *Membership) owes() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return !m.owed.IsZero() && !m.cfg.Now().Before(m.owed)
}

// compareStore learns what the origin has of revocations, and writes what it lacks.
func (m *Membership) compareStore(ctx context.Context, c *catalog.Catalog, writable bool) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var list []claim
	there := map[string]bool{}
	var errs []error
	asked := m.cfg.Now()
	for r, err := range c.List(ctx, content.KindRevocation, "", "") {
		there[r.Name] = true
		if err == nil {
			m.cfg.Told(r, asked)
		}
		switch {
		case err == nil && len(list) < revokedMax:
			list = append(list, claim{sealed: r.Sealed, seen: r.Modified})
		case errors.Is(err, content.ErrUnavailable):
			errs = append(errs, err)
		}
	}
	slices.SortFunc(list, func(a, b claim) int { return a.seen.Compare(b.seen) })
	m.learn(list) // in the order of their writing: who was revoked then revokes nobody later
	m.mu.RLock()
	lacks := map[trust.PublicKey][]byte{}
	for key, r := range m.revoked {
		if !there[key.String()] {
			lacks[key] = r.Sealed
		}
	}
	m.mu.RUnlock()
	if len(errs) == 0 && writable {
		for key, sealed := range lacks {
			if _, err := c.Submit(ctx, sealed, ""); err != nil && !errors.Is(err, content.ErrExists) && !errors.Is(err, content.ErrForbidden) {
				errs = append(errs, fmt.Errorf("store revocation of %s: %w", key, err))
			}
		}
	}
	m.mu.Lock()
	m.owed = time.Time{}
	if len(errs) > 0 {
		m.owed = m.cfg.Now().Add(storeInterval)
	}
	m.mu.Unlock()
	return errors.Join(errs...)
}
