// Package catalog keeps names: each is one signed record in the bucket, written
// with a condition, so that of two writers one wins and the other is told. It
// knows what a record stands for, never what the bytes behind it are.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// recordPrefix begins the key of each record: records/<space>/<name>.
const recordPrefix = "records/"

// commitTries bounds how often one commit is sent when the store loses replies:
// each try is settled by a read, so this many losses in a row mean that the
// store is not answering.
const commitTries = 5

// Config is what a Catalog is built from.
type Config struct {
	// Bucket holds the records.
	Bucket bucket.Bucket
	// Verifier checks them.
	Verifier *trust.Verifier
	// Signer signs what is committed here; with the zero Signer each commit is
	// refused.
	Signer trust.Signer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// Catalog reads and writes records. Safe for concurrent use.
type Catalog struct {
	cfg Config

	mu   sync.Mutex        // guards seen
	seen map[string]Record // by key, as last read: a list asks only for what changed
}

// New builds a Catalog.
func New(cfg Config) (*Catalog, error) {
	if cfg.Bucket == nil || cfg.Verifier == nil {
		return nil, errors.New("catalog: Config needs a Bucket and a Verifier")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Catalog{cfg: cfg, seen: map[string]Record{}}, nil
}

// Record is a checked envelope, as it was seen at the origin.
type Record struct {
	trust.Envelope
	// Sealed is the envelope as it is stored, to be passed on to members.
	Sealed []byte
	// ETag is the store's version of it.
	ETag string
	// SeenAt is when the origin answered with it.
	SeenAt time.Time
}

func key(kind content.Kind, name string) string {
	return recordPrefix + string(kind.Space()) + "/" + name
}

// Get reads the record of a name. A name that never was is ErrNotFound. The
// record may be a tombstone, whose version the next one must exceed.
func (c *Catalog) Get(ctx context.Context, kind content.Kind, name string) (Record, error) {
	if err := checkName(kind, name); err != nil {
		return Record{}, err
	}
	b, info, err := bucket.ReadAll(ctx, c.cfg.Bucket, key(kind, name), content.RecordSizeMax)
	if errors.Is(err, content.ErrNotFound) {
		return Record{}, fmt.Errorf("%s %q: %w", kind.Space(), name, content.ErrNotFound)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read %s %q: %w", kind.Space(), name, err)
	}
	return c.open(kind, name, b, info)
}

// open checks a record that was read under a name, and remembers it.
func (c *Catalog) open(kind content.Kind, name string, b []byte, info bucket.Info) (Record, error) {
	now := c.cfg.Now()
	e, err := c.cfg.Verifier.Open(b, now)
	if err != nil {
		return Record{}, fmt.Errorf("read %s %q: %w", kind.Space(), name, err)
	}
	if e.Kind.Space() != kind.Space() || e.Name != name {
		return Record{}, fmt.Errorf("read %s %q: %w: the record there is of %s %q", kind.Space(), name, content.ErrCorrupt, e.Kind, e.Name)
	}
	r := Record{e, b, info.ETag, now}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[key(kind, name)] = r
	return r, nil
}

// List yields every record of a namespace, tombstones included, in order of
// names. It asks the store for one list, and for the records that changed since
// this Catalog last read them. A record that can't be read or checked is yielded
// as an error with its name in Record.Name, and the list goes on.
func (c *Catalog) List(ctx context.Context, space content.Kind) iter.Seq2[Record, error] {
	prefix := recordPrefix + string(space.Space()) + "/"
	return func(yield func(Record, error) bool) {
		for info, err := range c.cfg.Bucket.List(ctx, prefix, "") {
			if err != nil {
				yield(Record{}, fmt.Errorf("list %ss: %w", space, err))
				return
			}
			name := strings.TrimPrefix(info.Key, prefix)
			r, err := c.listed(ctx, space, name, info)
			if errors.Is(err, content.ErrNotFound) { // deleted since the list
				continue
			}
			r.Name = name
			if !yield(r, err) {
				return
			}
		}
	}
}

func (c *Catalog) listed(ctx context.Context, space content.Kind, name string, info bucket.Info) (Record, error) {
	c.mu.Lock()
	r, ok := c.seen[info.Key]
	c.mu.Unlock()
	if ok && r.ETag == info.ETag {
		r.SeenAt = c.cfg.Now()
		return r, nil
	}
	return c.Get(ctx, space, name)
}

// Change is a record to be written.
type Change struct {
	Kind content.Kind
	Name string
	Farm string
	Body []byte
	// Base is the record that the change was made from; nil creates the name,
	// which must be free: absent or deleted.
	Base *Record
	// Delete writes a tombstone. It needs a Base.
	Delete bool
}

// TakenError says which record stands where a commit wanted to write. It wraps
// ErrExists for a create, ErrConflict otherwise.
type TakenError struct {
	Current Record
	cause   error
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("%s %q: %v: version %d was signed by %s at %s", e.Current.Kind, e.Current.Name, e.cause,
		e.Current.Version, e.Current.Signer.Key, e.Current.SignedAt.UTC().Format(time.RFC3339))
}

func (e *TakenError) Unwrap() error { return e.cause }

// Commit writes a record and returns it as stored. A reply that was lost, or a
// condition that failed, is settled by reading: the commit's own identifier
// there means success, another record is a *TakenError, and nothing changed
// means that the write never arrived and is sent again.
func (c *Catalog) Commit(ctx context.Context, ch Change) (Record, error) {
	base, err := c.baseOf(ctx, ch)
	if err != nil {
		return Record{}, err
	}
	e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: base.Version + 1, SignedAt: c.cfg.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body}
	e.Commit = trust.NewCommit()
	sealed, err := c.cfg.Signer.Seal(e)
	if err != nil {
		return Record{}, err
	}
	return c.Submit(ctx, sealed, base.ETag)
}

// baseOf returns the record that the change replaces; without one, a record of
// version 0 and no ETag.
func (c *Catalog) baseOf(ctx context.Context, ch Change) (Record, error) {
	if ch.Base != nil {
		return *ch.Base, nil
	}
	if ch.Delete {
		return Record{}, fmt.Errorf("delete %s %q: %w: no record was given", ch.Kind, ch.Name, content.ErrInvalid)
	}
	current, err := c.Get(ctx, ch.Kind, ch.Name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return Record{}, nil
	case err != nil:
		return Record{}, err
	case !current.Tombstone:
		return Record{}, &TakenError{current, content.ErrExists}
	}
	return current, nil
}

// Submit stores an envelope that a member sealed over the record with that
// ETag, "" for a name that never was. It is Commit's second half, and what a
// member with an origin does for one without.
func (c *Catalog) Submit(ctx context.Context, sealed []byte, baseETag string) (Record, error) {
	mine, err := c.cfg.Verifier.Open(sealed, c.cfg.Now())
	if err != nil {
		return Record{}, err
	}
	k, cond := key(mine.Kind, mine.Name), bucket.IfAbsent()
	if baseETag != "" {
		cond = bucket.IfMatch(baseETag)
	}
	var cause error
	for range commitTries {
		info, err := c.cfg.Bucket.Put(ctx, k, bucket.Bytes(sealed), cond)
		if err == nil {
			return c.open(mine.Kind, mine.Name, sealed, info)
		}
		if !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown) {
			return Record{}, fmt.Errorf("write %s %q: %w", mine.Kind, mine.Name, err)
		}
		cause = err
		current, err := c.Get(ctx, mine.Kind, mine.Name)
		switch {
		case err == nil && current.Commit == mine.Commit:
			return current, nil
		case err == nil && current.ETag != baseETag:
			return Record{}, taken(current, baseETag)
		case err != nil && !errors.Is(err, content.ErrNotFound):
			return Record{}, fmt.Errorf("write %s %q: the reply was lost, and so was the answer to reading it back: %w", mine.Kind, mine.Name, err)
		case err != nil && baseETag != "":
			return Record{}, fmt.Errorf("write %s %q: %w: the record that it replaces is gone", mine.Kind, mine.Name, content.ErrConflict)
		}
	}
	return Record{}, fmt.Errorf("write %s %q: %w: %d tries were lost: %w", mine.Kind, mine.Name, content.ErrUnavailable, commitTries, cause)
}

func taken(current Record, baseETag string) error {
	if baseETag == "" {
		return &TakenError{current, content.ErrExists}
	}
	return &TakenError{current, content.ErrConflict}
}

// checkName admits a plain name, and NAME@N for snapshots.
func checkName(kind content.Kind, name string) error {
	if kind == content.KindSnapshot {
		_, err := content.ParseRef(string(content.KindSnapshot) + ":" + name)
		return err
	}
	return content.CheckName(name)
}
