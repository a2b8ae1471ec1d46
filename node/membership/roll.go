package membership

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// rollMax bounds the members remembered, of about a kilobyte each: more than the
	// largest mesh has and had. Over it, who was not seen for longest is forgotten.
	rollMax = 16 << 10
	// certificatesMax bounds those remembered of a member: one more a revoked issuer.
	certificatesMax = 4
	rollMagic       = "grange-roll/1"
)

// sighting is a certificate that this member has seen, and since when.
type sighting struct {
	Sum [32]byte `cbor:"sum"`
	// Since is in Unix nanoseconds; 0 is for ever.
	Since int64 `cbor:"since"`
}

type enrolled struct {
	Chain trust.Chain `cbor:"chain"`
	// Met has the first of Chain as its last, but where only its issuer told of it: that
	// is nobody's word that it is not made for the occasion.
	Met  []sighting `cbor:"met"`
	Name string     `cbor:"name"`
	// Seen is when a member had last dealt with it, in Unix milliseconds.
	Seen int64 `cbor:"seen"`
}

// roll is every member that this one has heard of, with its certificate. Each chain was
// checked by whoever put it there. Safe for concurrent use.
type roll struct {
	path string

	saving sync.Mutex
	mu     sync.Mutex // guards what follows
	all    map[trust.PublicKey]enrolled
	caught time.Time // what honest members knew by then is known here; zero: nothing yet
	// changed says that members or certificates did, touched that times did.
	changed, touched bool
}

func newRoll(path string) *roll {
	return &roll{path: path, all: map[trust.PublicKey]enrolled{}}
}

type rollWire struct {
	Magic string     `cbor:"magic"`
	All   []enrolled `cbor:"all"`
	// Caught is in Unix nanoseconds; 0 is never.
	Caught int64 `cbor:"caught"`
}

// openRoll reads the roll. One that can't be read is lost, and is filled again.
func openRoll(path string, log *slog.Logger) (*roll, error) {
	r := newRoll(path)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("roll: %w", err)
	}
	var w rollWire
	if err := content.NewCodec().Unmarshal(b, &w); err != nil || w.Magic != rollMagic {
		log.Warn("the roll of members can't be read, and is begun anew", "file", path, "err", err)
		return r, nil
	}
	if w.Caught != 0 {
		r.caught = time.Unix(0, w.Caught)
	}
	for _, e := range w.All {
		if len(e.Chain) > 0 {
			r.all[e.Chain[0].Subject] = e
		}
	}
	return r, nil
}

func (r *roll) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	r.changed, r.touched = false, false // before the list: what comes after it is for the next time
	w := rollWire{Magic: rollMagic}
	if !r.caught.IsZero() {
		w.Caught = r.caught.UnixNano()
	}
	r.mu.Unlock()
	w.All = r.list()
	b, err := content.NewCodec().Marshal(w)
	if err == nil {
		err = durable.WriteFile(r.path, b, 0o600)
	}
	if err != nil {
		r.mu.Lock()
		r.changed = true
		r.mu.Unlock()
		return fmt.Errorf("roll of members: %w", err)
	}
	return nil
}

// stale reports whether the file lacks members, or times if those count.
func (r *roll) stale(times bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed || times && r.touched
}

// proved notes a member that has just proved who it is, by that chain.
func (r *roll) proved(chain trust.Chain, name string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, had := r.all[chain[0].Subject]
	if !had || len(e.Met) == 0 || chain[0].Sum() != e.Chain[0].Sum() {
		r.changed = true
		e.certify(chain, now.UnixNano())
	}
	if name = cleanName(name); name != "" && name != e.Name {
		e.Name, r.changed = name, true
	}
	e.Seen, r.touched = max(e.Seen, now.UnixMilli()), true
	r.put(e)
}

// heard notes a member that another, by, has told of, by a chain that is good.
func (r *roll) heard(chain trust.Chain, name string, by trust.PublicKey, seen, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, had := r.all[chain[0].Subject]
	if !had {
		e.Chain, r.changed = chain, true
	}
	if name = cleanName(name); e.Name == "" && name != "" { // what it calls itself to this member goes before that
		e.Name, r.changed = name, true
	}
	own := slices.ContainsFunc(chain[1:], func(c trust.Certificate) bool { return c.Subject == by })
	if len(e.Met) == 0 && !own && chain[0].Sum() == e.Chain[0].Sum() {
		e.certify(chain, now.UnixNano())
		r.changed = true
	}
	if seen.After(now) { // nobody saw anybody yet to come
		seen = now
	}
	if ms := seen.UnixMilli(); ms > e.Seen {
		e.Seen, r.touched = ms, true
	}
	r.put(e)
}

// vouch notes a certificate that is to be believed whoever of its issuers is revoked.
func (r *roll) vouch(chain trust.Chain, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.all[chain[0].Subject]
	e.certify(chain, 0)
	e.Seen, r.changed = now.UnixMilli(), true
	r.put(e)
}

// certify gives the member another certificate, seen since a time.
func (e *enrolled) certify(chain trust.Chain, since int64) {
	sum := chain[0].Sum()
	i := slices.IndexFunc(e.Met, func(m sighting) bool { return m.Sum == sum })
	m := sighting{sum, since}
	if i >= 0 { // it goes back to one that it had
		m.Since = min(since, e.Met[i].Since)
		e.Met = slices.Delete(slices.Clone(e.Met), i, i+1)
	}
	e.Chain, e.Met = chain, append(slices.Clip(e.Met), m)
	e.Met = e.Met[max(0, len(e.Met)-certificatesMax):]
}

// put stores e, and makes room for it. Called with mu.
func (r *roll) put(e enrolled) {
	key := e.Chain[0].Subject
	if _, had := r.all[key]; !had && len(r.all) >= rollMax {
		oldest := slices.MinFunc(slices.Collect(maps.Values(r.all)), func(a, b enrolled) int { return cmp.Compare(a.Seen, b.Seen) })
		delete(r.all, oldest.Chain[0].Subject)
	}
	r.all[key] = e
}

// catchUp notes when this member had heard all there was, and caughtUp returns it.
func (r *roll) catchUp(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.caught, r.touched = at, true
}

func (r *roll) caughtUp() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.caught
}

func (r *roll) knownSince(c trust.Certificate) (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := c.Sum()
	for _, m := range r.all[c.Subject].Met {
		if m.Sum == sum && m.Since == 0 {
			return time.Time{}, true
		}
		if m.Sum == sum {
			return time.Unix(0, m.Since), true
		}
	}
	return time.Time{}, false
}

// last returns the chain that the member was believed by last; nil if it never was.
func (r *roll) last(key trust.PublicKey) trust.Chain {
	if e, ok := r.of(key); ok && len(e.Met) > 0 {
		return e.Chain
	}
	return nil
}

// of returns what is known of a member.
func (r *roll) of(key trust.PublicKey) (enrolled, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.all[key]
	return e, ok
}

func (r *roll) list() []enrolled {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.all), func(a, b enrolled) int { return compareKeys(a.Chain[0].Subject, b.Chain[0].Subject) })
}

func compareKeys(a, b trust.PublicKey) int { return bytes.Compare(a[:], b[:]) }

// nameMax bounds the name that a member gives itself, in bytes: a host's.
const nameMax = 64

// cleanName is what may be shown of a name that a member gave itself, unproved.
func cleanName(name string) string {
	name = strings.Map(func(c rune) rune {
		if content.CheckName("a"+string(c)) != nil {
			return -1
		}
		return c
	}, name[:min(len(name), nameMax)])
	return strings.TrimLeft(name, "._-")
}

// NameOr is the name of a member to be: that asked for, or what fits of the host's.
func NameOr(asked, host string) (string, error) {
	if asked != "" && (content.CheckName(asked) != nil || len(asked) > nameMax) {
		return "", fmt.Errorf("--name %.80q: %w: want 1 to %d letters, digits, '.', '_' and '-', beginning with a letter or digit", asked, content.ErrInvalid, nameMax)
	}
	return cmp.Or(asked, cleanName(host)), nil
}
