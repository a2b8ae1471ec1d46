package garbage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// recordsAtOnce bounds the records that are read at once, recordsBatch those that are kept in memory.
	recordsAtOnce = 16
	recordsBatch  = 256
	// changesMax is how often a record is looked at again that has changed since it was read.
	changesMax = 5
)

// Record is what one record at the origin names. It is decoded and not verified: what anybody's record names stays, as
// who reads it judges who may have written it.
type Record struct {
	// Key and Written, by the store's clock, are those of its object; Size its bytes.
	Key     string
	Written time.Time
	Size    int64
	// Space is its namespace, and Name and Kind what it says itself.
	Space, Kind content.Kind
	Name        string
	// Envelope is all that it says; of a damaged one what could be read.
	Envelope trust.Envelope
	// Sealed is the record as it is stored.
	Sealed []byte
	// Head is nil where it names no root.
	Head *pack.Head
	// Segments are those that it names, and Volume whose record it is; zero for none.
	Segments []content.SegmentRef
	Volume   content.VolumeID
	// Through is up to where a volume's record has its journal: what lies behind may be acknowledged.
	Through content.Position
	// Err says why a record can't be read. It wraps content.ErrUnknown where a later version wrote it.
	Err error
	// Unsigned says why nobody believes it; nil where its signature holds.
	Unsigned error
}

// Label is what people call the record.
func (r Record) Label() string { return string(r.Space) + ":" + r.Name }

// spaces are the namespaces of records.
func spaces() []content.Kind {
	return []content.Kind{content.KindCollection, content.KindImage, content.KindInstance, content.KindLease, content.KindRevocation, content.KindSnapshot, content.KindVolume}
}

// Source is where records are read.
type Source struct {
	Bucket   bucket.Bucket
	Verifier *trust.Verifier
	// Now is a clock for signatures: the store's, where that is known.
	Now func() time.Time
	// Recall returns a record's bytes as they were when they had that ETag, nil where they are not known: such a record is
	// not read again. It may be nil.
	Recall func(space content.Kind, name, etag string) []byte
}

// Records yields all records of an origin, tombstones left out, by their keys. One that can't be read has an Err. The
// error is of the store, or a key that is none of a record's, which wraps content.ErrUnknown: it ends the list, and whoever
// gets it knows nothing of what there is.
func (s Source) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for r, err := range s.RecordsAfter(ctx, "") {
			if !r.Envelope.Tombstone && !yield(r, err) {
				return
			}
		}
	}
}

// RecordsAfter is Records of those whose keys come behind one, tombstones too.
func (s Source) RecordsAfter(ctx context.Context, after string) iter.Seq2[Record, error] {
	l := &lister{s, content.NewCodec()}
	return func(yield func(Record, error) bool) {
		batch := make([]Record, 0, recordsBatch)
		etags := make([]string, 0, recordsBatch)
		for info, err := range s.Bucket.List(ctx, string(content.KeyRecords), after) {
			var r Record
			if err == nil {
				r, err = named(info)
			}
			if err != nil {
				yield(Record{}, listing("records", err))
				return
			}
			batch, etags = append(batch, r), append(etags, info.ETag)
			if len(batch) < recordsBatch {
				continue
			}
			if !l.yield(ctx, batch, etags, yield) {
				return
			}
			batch, etags = batch[:0], etags[:0]
		}
		l.yield(ctx, batch, etags, yield)
	}
}

// Settle does something with a record as it was listed, and where that did not go well, with what it is by then: what the
// one before named may be gone. So may the record be.
func (s Source) Settle(ctx context.Context, r Record, do func(Record) (well bool, err error)) (gone bool, err error) {
	l := &lister{s, content.NewCodec()}
	l.Recall = nil
	for n := 0; ; n++ {
		if well, err := do(r); err != nil || well || n == changesMax {
			return false, err
		}
		now := Record{Key: r.Key, Space: r.Space, Name: r.Name}
		if err := l.read(ctx, &now, ""); err != nil || bytes.Equal(now.Sealed, r.Sealed) {
			return now.Sealed == nil, err
		}
		if r = now; r.Sealed == nil {
			return true, nil
		}
	}
}

// named is the record of an object, unread.
func named(info bucket.Info) (Record, error) {
	space, segment, _ := strings.Cut(strings.TrimPrefix(info.Key, string(content.KeyRecords)), "/")
	name, err := content.NameOf(segment)
	if err == nil && !slices.Contains(spaces(), content.Kind(space)) {
		err = errors.New("there is no such kind of record")
	}
	if err != nil {
		return Record{}, fmt.Errorf("%s: %w: %w", info.Key, content.ErrUnknown, err)
	}
	return Record{Key: info.Key, Written: info.Modified, Size: info.Size, Space: content.Kind(space), Name: name}, nil
}

type lister struct {
	Source
	codec *content.Codec
}

// yield reads some records and yields them, and reports whether to go on.
func (l *lister) yield(ctx context.Context, batch []Record, etags []string, yield func(Record, error) bool) bool {
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(recordsAtOnce)
	for i := range batch {
		group.Go(func() error { return l.read(reading, &batch[i], etags[i]) })
	}
	if err := group.Wait(); err != nil {
		yield(Record{}, fmt.Errorf("read records: %w", err))
		return false
	}
	for _, r := range batch {
		if r.Sealed != nil && !yield(r, nil) {
			return false
		}
	}
	return true
}

// read reads and decodes one; one that is gone since it was listed has nothing sealed.
func (l *lister) read(ctx context.Context, r *Record, etag string) error {
	if l.Recall != nil {
		r.Sealed = l.Recall(r.Space, r.Name, etag)
	}
	if r.Sealed == nil {
		b, info, err := bucket.ReadAll(ctx, l.Bucket, r.Key, content.RecordSizeMax)
		switch {
		case errors.Is(err, content.ErrNotFound):
			return nil
		case errors.Is(err, content.ErrCorrupt):
			r.Sealed, r.Err = []byte{}, err
			return nil
		case err != nil:
			return err
		}
		r.Sealed, r.Written, r.Size = b, info.Modified, info.Size
	}
	_, r.Unsigned = l.Verifier.Open(r.Sealed, r.Written, l.Now())
	if r.Err = r.decode(l.codec); r.Err != nil {
		r.Err = fmt.Errorf("record of %s %q: %w", r.Space, r.Name, r.Err)
	}
	return nil
}

func (r *Record) decode(c *content.Codec) (err error) {
	if r.Envelope, err = trust.Peek(r.Sealed); err != nil {
		return err
	}
	e := r.Envelope
	r.Kind = e.Kind
	if e.Kind.Space() != r.Space || e.Name != r.Name {
		return fmt.Errorf("%w: it says that it is of %s %q", content.ErrCorrupt, e.Kind, e.Name)
	}
	if e.Tombstone {
		return nil
	}
	d, again, err := catalog.Decode(c, e)
	switch {
	case again != nil:
		r.Head, r.Segments, r.Volume, r.Through = cmp.Or(d.Head, d.Leased), d.Segments, d.Volume, d.Through
		return r.known(c, again, err)
	case e.Kind != content.KindCollection && e.Kind != content.KindRevocation:
		return fmt.Errorf("%w: kind %.40q", content.ErrUnknown, e.Kind)
	}
	return nil
}

// known tells a body that says more than this version can read from one that is damaged: what is left out of it might be
// what it names.
func (r *Record) known(c *content.Codec, again func(*content.Codec) ([]byte, error), err error) error {
	if err == nil {
		var b []byte
		if b, err = again(c); err == nil && bytes.Equal(b, r.Envelope.Body) {
			return nil
		}
		err = fmt.Errorf("%w: it says more than is understood here: %v", content.ErrCorrupt, err)
	}
	if r.Unsigned == nil { // as a member wrote it
		err = fmt.Errorf("%w: %w", content.ErrUnknown, err)
	}
	return err
}
