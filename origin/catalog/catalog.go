// Package catalog keeps names: each is one signed record in the bucket, written
// with a condition, so that of two writers one wins and the other is told. It
// knows what a record stands for, never what the bytes behind it are.
package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// commitTries bounds how often one commit is sent when the store loses replies: each try is settled by a
// read, so this many losses in a row mean that the store is not answering.
const commitTries = 5

// Config is what a Catalog is built from.
type Config struct {
	// Bucket holds the records.
	Bucket bucket.Bucket
	// Verifier checks them.
	Verifier *trust.Verifier
	// Signer signs what is committed here; with the zero Signer each commit is refused.
	Signer trust.Signer
	// Recall returns a record as the origin last showed it to who keeps what is known of
	// names, also one that is not there any more: what did not change is not read or
	// checked again, and no version is used twice. nil is for who keeps nothing.
	Recall func(kind content.Kind, name string) (Record, bool)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Catalog reads and writes records, and keeps none. Safe for concurrent use.
type Catalog struct{ cfg Config }

// New builds a Catalog.
func New(cfg Config) (*Catalog, error) {
	if cfg.Bucket == nil || cfg.Verifier == nil {
		return nil, errors.New("catalog: Config needs a Bucket and a Verifier")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Recall == nil {
		cfg.Recall = func(content.Kind, string) (Record, bool) { return Record{}, false }
	}
	return &Catalog{cfg}, nil
}

// Bucket is where the records are.
func (c *Catalog) Bucket() bucket.Bucket { return c.cfg.Bucket }

// Record is a checked envelope, as it was seen at the origin.
type Record struct {
	trust.Envelope
	// Sealed is the envelope as it is stored, to be passed on to members.
	Sealed []byte
	// ETag is the store's version of it.
	ETag string
	// SeenAt is when the origin answered with it.
	SeenAt time.Time
	// Modified is when it was written, by the store's clock; zero for what this Catalog wrote.
	Modified time.Time
	// Now is the store's clock when it answered with it, or that it was written; zero where it did not say, and for what
	// comes from elsewhere.
	Now time.Time
}

// OpenTo reports whether the record may give way to another: one that is for a farm
// only to what a member of that farm has signed, until the farm deletes it.
func (r Record) OpenTo(next trust.Envelope) bool {
	return r.Tombstone || r.Farm == "" || r.Farm == next.Signer.Farm
}

// FirstSeen is the earliest time at which the record is known to have been at the origin.
func (r Record) FirstSeen() time.Time {
	if r.Modified.IsZero() || r.Modified.After(r.SeenAt) {
		return r.SeenAt
	}
	return r.Modified
}

func key(kind content.Kind, name string) string {
	return string(content.KeyRecords) + string(kind.Space()) + "/" + content.Segment(name)
}

// Get reads the record of a name. A name that never was is ErrNotFound. The
// record may be a tombstone, whose version the next one must exceed. Whether it is
// older than one that was there before is for the caller to judge.
func (c *Catalog) Get(ctx context.Context, kind content.Kind, name string) (Record, error) {
	if err := kind.CheckName(name); err != nil {
		return Record{}, err
	}
	r, err := c.read(ctx, kind, name)
	if err != nil {
		return Record{}, fmt.Errorf("%s %q: %w", kind.Space(), name, err)
	}
	return r, nil
}

// read reads and checks a record; the bytes that are known have been checked.
func (c *Catalog) read(ctx context.Context, kind content.Kind, name string) (Record, error) {
	return bucket.ReadChecked(ctx, c.cfg.Bucket, key(kind, name), content.RecordSizeMax, func(b []byte, info bucket.Info) (Record, error) {
		now, open := c.cfg.Now(), c.cfg.Verifier.Open
		if known, ok := c.cfg.Recall(kind, name); ok && bytes.Equal(known.Sealed, b) {
			open = c.cfg.Verifier.Reopen
		}
		e, err := open(b, info.Modified, now)
		if err == nil && (e.Kind.Space() != kind.Space() || e.Name != name) {
			err = fmt.Errorf("%w: the record there is of %s %q", content.ErrCorrupt, e.Kind, e.Name)
		}
		return Record{e, b, info.ETag, now, info.Modified, info.Now}, err
	})
}

const (
	// listBatch records are looked at together, of which listAtOnce are read at
	// once: a first list of many names takes a round trip for each of the latter.
	listBatch  = 128
	listAtOnce = 32
)

// List yields the records of a namespace whose names begin with a prefix and come behind
// after, tombstones included, in order of the names' Segments. It asks the store for one list, as far as it is consumed,
// and for the records that changed since they were seen. A record that can't be read or
// checked is yielded as an error with its name in Record.Name, and the list goes on.
func (c *Catalog) List(ctx context.Context, space content.Kind, begin, after string) iter.Seq2[Record, error] {
	if after != "" {
		after = key(space, after)
	}
	return func(yield func(Record, error) bool) {
		batch := make([]bucket.Info, 0, listBatch)
		for info, err := range c.cfg.Bucket.List(ctx, key(space, begin), after) {
			if err != nil {
				yield(Record{}, fmt.Errorf("list %ss: %w", space, err))
				return
			}
			if batch = append(batch, info); len(batch) == listBatch {
				if !c.yieldBatch(ctx, space, batch, yield) {
					return
				}
				batch = batch[:0]
			}
		}
		c.yieldBatch(ctx, space, batch, yield)
	}
}

// yieldBatch yields the records of some listed objects, and reports whether to go on.
func (c *Catalog) yieldBatch(ctx context.Context, space content.Kind, batch []bucket.Info, yield func(Record, error) bool) bool {
	records := make([]Record, len(batch))
	errs := make([]error, len(batch))
	var group errgroup.Group
	group.SetLimit(listAtOnce)
	for i, info := range batch {
		name, err := content.NameOf(info.Key[strings.LastIndexByte(info.Key, '/')+1:])
		if err != nil { // not of ours
			errs[i] = err
			continue
		}
		if r, ok := c.cfg.Recall(space, name); ok && r.ETag == info.ETag {
			r.SeenAt, r.Now = c.cfg.Now(), info.Now
			records[i] = r
			continue
		}
		group.Go(func() error {
			records[i], errs[i] = c.Get(ctx, space, name)
			records[i].Name = name
			return nil
		})
	}
	_ = group.Wait() // each error is with its record
	for i, r := range records {
		if errors.Is(errs[i], content.ErrNotFound) { // deleted since the list
			continue
		}
		if !yield(r, errs[i]) {
			return false
		}
	}
	return true
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

	// What follows is for who sees to it that all stays that the record names, see records.Names. Since is when the first
	// of what Base does not name was put, if all of that was by who commits, by the store's clock; zero is for not known.
	// Damaged has the record stay though some of what it names is gone.
	Since   time.Time
	Damaged bool
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

// GoneError says that what a record was to name is gone from the origin. It is content.Gone.
type GoneError struct {
	Kind content.Kind
	Name string
	Keys []string
}

// goneShown is how many keys an error names.
const goneShown = 3

func (e *GoneError) Error() string {
	what := ""
	if e.Name != "" {
		what = fmt.Sprintf("write %s %q: ", e.Kind, e.Name)
	}
	return fmt.Sprintf("%s%d objects that it needs are gone from the origin, where no record had named them for long (%s): import anew what it was made from, or name another",
		what, len(e.Keys), strings.Join(e.Keys[:min(len(e.Keys), goneShown)], ", "))
}

func (e *GoneError) Unwrap() error { return content.Gone }

// Commit writes a record and returns it as stored. A reply that was lost, or a condition that failed, is
// settled by reading: the commit's own identifier there means success, another record is a *TakenError, and
// nothing changed means that the write never arrived and is sent again. When that can't be read, the error
// wraps bucket.ErrUnknown: the record may have been written. A name is created over what is known of it, and
// looked at first only where it seems to be taken.
func (c *Catalog) Commit(ctx context.Context, ch Change) (Record, error) {
	base, err := c.baseOf(ch)
	if err != nil {
		return Record{}, err
	}
	free := base.ETag == "" || base.Tombstone
	if ch.Base != nil || free {
		r, err := c.commit(ctx, ch, base)
		if ch.Base != nil || !errors.Is(err, content.ErrExists) && !errors.Is(err, content.ErrConflict) {
			return r, err
		}
	}
	current, err := c.Get(ctx, ch.Kind, ch.Name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		current = c.vacant(ch.Kind, ch.Name)
	case err != nil:
		return Record{}, err
	case !current.Tombstone:
		return Record{}, &TakenError{current, content.ErrExists}
	}
	return c.commit(ctx, ch, current)
}

func (c *Catalog) commit(ctx context.Context, ch Change, base Record) (Record, error) {
	e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: base.Version + 1, SignedAt: c.cfg.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body}
	e.Commit = trust.NewCommit()
	sealed, err := c.cfg.Signer.Seal(e)
	if err != nil {
		return Record{}, err
	}
	mine, err := c.cfg.Verifier.Open(sealed, c.cfg.Now(), c.cfg.Now())
	if err != nil {
		return Record{}, err
	}
	return c.write(ctx, mine, sealed, base)
}

// baseOf returns the record that the change replaces, as far as is known, or the vacant one.
func (c *Catalog) baseOf(ch Change) (Record, error) {
	if err := ch.Kind.CheckName(ch.Name); err != nil {
		return Record{}, err
	}
	switch {
	case ch.Base != nil && (ch.Base.Kind.Space() != ch.Kind.Space() || ch.Base.Name != ch.Name):
		return Record{}, fmt.Errorf("write %s %q: %w: made from the record of %s %q", ch.Kind, ch.Name, content.ErrInvalid, ch.Base.Kind, ch.Base.Name)
	case ch.Base != nil && ch.Base.ETag == "":
		return Record{}, fmt.Errorf("write %s %q: %w: made from a record that was not read at the origin; read it there and decide again", ch.Kind, ch.Name, content.ErrConflict)
	case ch.Base != nil:
		return *ch.Base, nil
	case ch.Delete:
		return Record{}, fmt.Errorf("delete %s %q: %w: no record was given", ch.Kind, ch.Name, content.ErrInvalid)
	}
	known, _ := c.cfg.Recall(ch.Kind, ch.Name)
	return known, nil
}

// vacant stands for the record of a name that is not there. It has no ETag, and
// the version that was last seen there: none is used again.
func (c *Catalog) vacant(kind content.Kind, name string) Record {
	last, _ := c.cfg.Recall(kind, name)
	last.ETag = ""
	return last
}

// Submit stores an envelope that a member without an origin sealed over the record with that ETag, "" for a
// name that never was: what Commit does with its own. Sent again after a lost reply it succeeds.
func (c *Catalog) Submit(ctx context.Context, sealed []byte, baseETag string) (Record, error) {
	mine, err := c.cfg.Verifier.Open(sealed, c.cfg.Now(), c.cfg.Now())
	if err != nil {
		return Record{}, err
	}
	base, ok := c.cfg.Recall(mine.Kind, mine.Name)
	if !ok || base.ETag != baseETag {
		base, err = c.Get(ctx, mine.Kind, mine.Name)
		switch {
		case errors.Is(err, content.ErrNotFound) && baseETag == "":
			base = c.vacant(mine.Kind, mine.Name)
		case err != nil:
			return Record{}, err
		case base.Commit == mine.Commit:
			return base, nil
		case base.ETag != baseETag:
			return Record{}, taken(base, baseETag)
		}
	}
	if mine.Version != base.Version+1 {
		return Record{}, fmt.Errorf("write %s %q: %w: version %d after %d", mine.Kind, mine.Name, content.ErrInvalid, mine.Version, base.Version)
	}
	return c.write(ctx, mine, sealed, base)
}

// write stores a sealed envelope over the base. The record of a farm is replaced by
// that farm alone; a name that it deleted is free.
func (c *Catalog) write(ctx context.Context, mine trust.Envelope, sealed []byte, base Record) (Record, error) {
	cond := bucket.IfAbsent()
	if base.ETag != "" {
		cond = bucket.IfMatch(base.ETag)
		if !base.OpenTo(mine) {
			return Record{}, fmt.Errorf("write %s %q: %w: it belongs to farm %q, and a member of farm %q wrote this", mine.Kind, mine.Name, content.ErrForbidden, base.Farm, mine.Signer.Farm)
		}
	}
	var cause error
	for range commitTries {
		info, err := c.cfg.Bucket.Put(ctx, key(mine.Kind, mine.Name), bucket.Bytes(sealed), cond)
		if err == nil {
			return Record{Envelope: mine, Sealed: sealed, ETag: info.ETag, SeenAt: c.cfg.Now(), Now: info.Now}, nil
		}
		cause = err
		if !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown) {
			break
		}
		current, err := c.Get(ctx, mine.Kind, mine.Name)
		switch {
		case err == nil && current.Commit == mine.Commit:
			return current, nil
		case err == nil && current.ETag != base.ETag:
			return Record{}, taken(current, base.ETag)
		case errors.Is(err, content.ErrNotFound) && base.ETag != "":
			return Record{}, fmt.Errorf("write %s %q: %w: the record that it replaces is gone", mine.Kind, mine.Name, content.ErrConflict)
		case errors.Is(err, content.ErrCorrupt) && !errors.Is(cause, bucket.ErrUnknown):
			return Record{}, damaged(mine.Kind, mine.Name, err)
		case err != nil && !errors.Is(err, content.ErrNotFound):
			return Record{}, fmt.Errorf("write %s %q: the reply was lost, and it can't be read back: %w: %w", mine.Kind, mine.Name, bucket.ErrUnknown, err)
		}
	}
	return Record{}, fmt.Errorf("write %s %q: %w", mine.Kind, mine.Name, cause)
}

// damaged says what is to be done about a record that can't be read. Only what can be imported again is worth no more than
// its content: without the record of a volume that is lost.
func damaged(kind content.Kind, name string, err error) error {
	also := ""
	if kind.Space() == content.KindImage {
		also = ", or delete it at the store if its content can be imported again"
	}
	return fmt.Errorf("%w; nothing is written over it: put the object %s back from a copy of the origin%s", err, key(kind, name), also)
}

func taken(current Record, baseETag string) error {
	if baseETag == "" {
		return &TakenError{current, content.ErrExists}
	}
	return &TakenError{current, content.ErrConflict}
}
