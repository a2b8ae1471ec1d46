package node

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
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// freshFor is how old a record may be to be answered from memory: a re-tag
	// is seen everywhere within this and one request.
	freshFor = 5 * time.Second
	// lookupTimeout bounds one look for a record at the origin, and another at
	// members when it says nothing.
	lookupTimeout = 3 * time.Second
	// confirmAsk is how many members of different farms are asked when the
	// origin does not answer.
	confirmAsk = 3
)

// Resolved is what a name stands for.
type Resolved struct {
	Kind    content.Kind
	Name    string
	Root    content.CID
	Size    int64
	Version uint64
	// Age is the time since this node, or a member by its signed word, saw the
	// version at the origin.
	Age       time.Duration
	Confirmed bool
	Scope     content.Scope
}

// known is a record with what is known of its freshness.
type known struct {
	catalog.Record
	head  *pack.Head // of images and volumes; nil for a blank volume
	scope content.Scope
	// confirmed is false once a look at the origin failed.
	confirmed bool
	// checked is when this node last asked.
	checked time.Time
}

// heard is what a member answered: a sealed record and its statement.
type heard struct {
	Sealed    []byte `cbor:"record"`
	Statement []byte `cbor:"statement"`
	ETag      string `cbor:"etag"`
}

// Names resolves names: from memory while fresh, then from the origin, then from
// members. Records are kept on disk, so that a node that restarts while the
// origin is away still knows them. Safe for concurrent use.
type Names struct {
	dir      string
	catalog  func() *catalog.Catalog // nil while there is no origin
	lost     func(error)             // told when it fails to answer
	verifier *trust.Verifier
	// ask returns what up to limit members of different farms say.
	ask   func(ctx context.Context, kind content.Kind, name string, limit int) []heard
	learn func(known)
	codec *content.Codec
	now   func() time.Time
	log   *slog.Logger

	flights singleflight.Group
	saving  sync.Mutex // one save at a time

	mu      sync.RWMutex // guards records
	records map[string]known
}

func recordKey(kind content.Kind, name string) string { return string(kind.Space()) + "/" + name }

// Resolve says what a name stands for: an image or tag, else a volume of this
// farm. Without trust only public content exists.
func (n *Names) Resolve(ctx context.Context, name string, trusted bool) (Resolved, error) {
	kinds := []content.Kind{content.KindImage, content.KindVolume}
	if kind, rest, ok := strings.Cut(name, ":"); ok {
		kinds, name = []content.Kind{content.Kind(kind)}, rest
	}
	var first error
	for _, kind := range kinds {
		k, err := n.Lookup(ctx, kind, name, false)
		if err == nil && (trusted || k.scope.IsPublic()) {
			return n.resolved(k), nil
		}
		if err == nil {
			err = fmt.Errorf("%q: %w", name, content.ErrNotFound)
		}
		first = cmp.Or(first, err)
		if !errors.Is(err, content.ErrNotFound) {
			break
		}
	}
	return Resolved{}, first
}

func (n *Names) resolved(k known) Resolved {
	r := Resolved{Kind: k.Kind, Name: k.Name, Version: k.Version, Age: n.now().Sub(k.SeenAt), Confirmed: k.confirmed, Scope: k.scope}
	if k.head != nil {
		r.Size = k.head.Root.Size
		if root, err := k.head.Root.Encode(n.codec); err == nil {
			r.Root = root.CID()
		}
	}
	return r
}

// Lookup returns the record of a name. A fresh one is asked of the origin again
// if it can be reached; otherwise one that is some seconds old may do. Deleted
// names are ErrNotFound.
func (n *Names) Lookup(ctx context.Context, kind content.Kind, name string, fresh bool) (known, error) {
	if err := kind.CheckName(name); err != nil { // it becomes a path
		return known{}, err
	}
	key := recordKey(kind, name)
	n.mu.RLock()
	k, ok := n.records[key]
	n.mu.RUnlock()
	if !ok || fresh || n.now().Sub(k.checked) > freshFor {
		// The flight outlives the caller that began it: others wait for it too.
		ch := n.flights.DoChan(key, func() (any, error) {
			return n.look(context.WithoutCancel(ctx), kind, name)
		})
		select {
		case res := <-ch:
			if res.Err != nil {
				return known{}, res.Err
			}
			k = res.Val.(known)
		case <-ctx.Done():
			return known{}, ctx.Err()
		}
	}
	if k.Tombstone {
		return known{}, fmt.Errorf("%s %q: %w: it was deleted on %s", k.Kind, name, content.ErrNotFound, k.SignedAt.UTC().Format(time.DateTime))
	}
	return k, nil
}

// look asks the origin, then members, then this disk.
func (n *Names) look(ctx context.Context, kind content.Kind, name string) (known, error) {
	var cause error = fmt.Errorf("%w: this node has no origin, or it does not answer", content.ErrUnavailable)
	if c := n.catalog(); c != nil {
		before, held := n.Held(kind, name)
		r, err := n.atOrigin(ctx, c, kind, name)
		if err == nil {
			return n.keep(r, true)
		}
		if held && errors.Is(err, content.ErrNotFound) {
			n.forget(before)
		}
		if errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrForbidden) || errors.Is(err, content.ErrInvalid) {
			return known{}, err
		}
		n.lost(err)
		cause = err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	best, ok := n.stored(kind, name)
	for _, h := range n.ask(ctx, kind, name, confirmAsk) {
		if r, err := n.heard(kind, name, h); err != nil {
			n.log.Warn("a member answered with a bad record", "name", name, "err", err)
		} else if !ok || r.Version > best.Version || r.Version == best.Version && r.SeenAt.After(best.SeenAt) {
			best, ok = r, true
		}
	}
	if !ok {
		return known{}, fmt.Errorf("%s %q: %w: no member that was asked knows it, and the origin did not answer: %w", kind, name, content.ErrUnavailable, cause)
	}
	return n.keep(best, n.now().Sub(best.SeenAt) <= freshFor)
}

// atOrigin asks the origin, which may be there and say nothing.
func (n *Names) atOrigin(ctx context.Context, c *catalog.Catalog, kind content.Kind, name string) (catalog.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	r, err := c.Get(ctx, kind, name)
	if errors.Is(err, content.ErrNotFound) { // the bucket's own words would not help
		return r, fmt.Errorf("%s %q: %w", kind, name, content.ErrNotFound)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%s %q: %w: no answer within %s", kind, name, content.ErrUnavailable, lookupTimeout)
	}
	return r, err
}

// heard checks a member's answer.
func (n *Names) heard(kind content.Kind, name string, h heard) (catalog.Record, error) {
	now := n.now()
	e, err := n.verifier.Open(h.Sealed, now, now)
	if err != nil {
		return catalog.Record{}, err
	}
	if e.Kind.Space() != kind.Space() || e.Name != name {
		return catalog.Record{}, fmt.Errorf("%w: asked for %s %q, got %s %q", content.ErrCorrupt, kind, name, e.Kind, e.Name)
	}
	r := catalog.Record{Envelope: e, Sealed: h.Sealed, ETag: h.ETag, SeenAt: e.SignedAt}
	if st, err := n.verifier.OpenStatement(h.Statement, now); err == nil && st.Name == name && st.Kind.Space() == kind.Space() && st.Version == e.Version {
		r.SeenAt = st.SeenAt
	}
	return r, nil
}

// keep remembers a record, unless a newer one is known.
func (n *Names) keep(r catalog.Record, confirmed bool) (known, error) {
	k, err := n.describe(r)
	if err != nil {
		return known{}, err
	}
	k.confirmed, k.checked = confirmed, n.now()
	key := recordKey(r.Kind, r.Name)
	n.mu.Lock()
	old, had := n.records[key]
	if had && old.Version > r.Version { // this look began before a change that another saw
		old.checked = k.checked
		k = old
	}
	n.records[key] = k
	n.mu.Unlock()
	if !had || old.Version != k.Version {
		n.save(key)
	}
	n.learn(k)
	return k, nil
}

// forget drops a record that the origin does not have any more, unless it was
// replaced meanwhile.
func (n *Names) forget(k known) {
	key := recordKey(k.Kind, k.Name)
	n.mu.Lock()
	gone := n.records[key].Commit == k.Commit
	if gone {
		delete(n.records, key)
	}
	n.mu.Unlock()
	if gone {
		n.save(key)
	}
}

// describe reads out of a record's body what every caller needs.
func (n *Names) describe(r catalog.Record) (known, error) {
	k := known{Record: r}
	if r.Tombstone {
		return k, nil
	}
	switch r.Kind {
	case content.KindImage, content.KindTag:
		body, err := catalog.DecodeImage(n.codec, r.Body)
		if err != nil {
			return known{}, fmt.Errorf("%s %q: %w", r.Kind, r.Name, err)
		}
		k.head, k.scope = &body.Head, body.Head.Scope
	case content.KindVolume:
		body, err := catalog.DecodeVolume(n.codec, r.Body)
		if err != nil {
			return known{}, fmt.Errorf("%s %q: %w", r.Kind, r.Name, err)
		}
		k.head, k.scope = body.Head, content.Farm(r.Farm)
	}
	return k, nil
}

// Confirmed takes a record that this node has just read or written at the
// origin.
func (n *Names) Confirmed(r catalog.Record) error {
	_, err := n.keep(r, true)
	return err
}

// Held returns the record of a name if this node has it, whatever its age.
func (n *Names) Held(kind content.Kind, name string) (known, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	k, ok := n.records[recordKey(kind, name)]
	return k, ok
}

// Of returns all records held of a namespace, deleted names left out, by name.
func (n *Names) Of(space content.Kind) []known {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []known
	for _, k := range n.records {
		if k.Kind.Space() == space && !k.Tombstone {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b known) int { return strings.Compare(a.Name, b.Name) })
	return out
}

type recordFile struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
	Seen   int64  `cbor:"seen"`
}

// save brings the file of a name to what memory has. A failure costs the name only
// while the origin is away, so it is logged and not returned.
func (n *Names) save(key string) {
	n.saving.Lock() // the last one to write has the newest
	defer n.saving.Unlock()
	n.mu.RLock()
	k, ok := n.records[key]
	n.mu.RUnlock()
	path := filepath.Join(n.dir, filepath.FromSlash(key))
	if !ok {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("the record of a name that is gone stays on disk", "file", path, "err", err)
		}
		return
	}
	b, err := n.codec.Marshal(recordFile{k.Sealed, k.ETag, k.SeenAt.UnixMilli()})
	if err == nil {
		err = durable.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(path, b, 0o600)
	}
	if err != nil {
		n.log.Warn("a record is not kept on disk", "name", k.Name, "err", err)
	}
}

// stored returns the record from memory or disk.
func (n *Names) stored(kind content.Kind, name string) (catalog.Record, bool) {
	if k, ok := n.Held(kind, name); ok {
		return k.Record, true
	}
	b, err := os.ReadFile(filepath.Join(n.dir, filepath.FromSlash(recordKey(kind, name))))
	if err != nil {
		return catalog.Record{}, false
	}
	r, err := n.read(b)
	return r, err == nil
}

func (n *Names) read(b []byte) (catalog.Record, error) {
	var f recordFile
	if err := n.codec.Unmarshal(b, &f); err != nil {
		return catalog.Record{}, err
	}
	e, err := n.verifier.Open(f.Sealed, time.UnixMilli(f.Seen), n.now())
	return catalog.Record{Envelope: e, Sealed: f.Sealed, ETag: f.ETag, SeenAt: time.UnixMilli(f.Seen)}, err
}

// load reads all records on disk, at the start: what they say is unconfirmed
// until the origin was asked.
func (n *Names) load() error {
	files, err := filepath.Glob(filepath.Join(n.dir, "*", "*"))
	if err != nil {
		return err
	}
	for _, path := range files {
		if strings.HasPrefix(filepath.Base(path), ".") {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("records: %w", err)
		}
		r, err := n.read(b)
		if err != nil {
			n.log.Warn("a record on disk is passed over", "file", path, "err", err)
			continue
		}
		k, err := n.describe(r)
		if err != nil {
			n.log.Warn("a record on disk is passed over", "file", path, "err", err)
			continue
		}
		n.mu.Lock()
		n.records[recordKey(r.Kind, r.Name)] = k
		n.mu.Unlock()
		n.learn(k)
	}
	return nil
}
