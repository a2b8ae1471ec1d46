// Package readers has a node read a volume beside whoever writes it: as the bucket had it at
// one moment, with no right to it, and nothing that its writer has to know.
//
// What a reader has of the journal is a copy of its own, made when it is attached, so that
// no fold takes anything from it, nor a restart. The root under that is in packs, which
// nobody deletes.
package readers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Made is the encoded head of the image that a volume was made from, while it has that root:
// more members have that than the volume's own. base says what a reference stands for.
func Made(ctx context.Context, base func(context.Context, content.Ref) (fetch.Root, error), c *content.Codec, body catalog.Volume) (head []byte) {
	if b, err := base(ctx, body.From); err == nil && body.From.Kind == content.KindImage && body.Head != nil && b.Head.Root == body.Head.Root {
		head, _ = b.Head.Encode(c)
	}
	return head
}

// Source is where readers come from.
type Source struct {
	Index   *index.Index
	Records records.Records
	Bucket  moment.Config
	// Base says what a reference stands for.
	Base func(context.Context, content.Ref) (fetch.Root, error)
	Farm string
	Now  func() time.Time
	// At is told of each step of the adoption of a journal.
	At func(step string)
}

// Ask is what is asked of a Source.
type Ask struct {
	Name, Transport string
	// Old is what this node has under the name, zero for nothing.
	Old index.Entry
	// Served says that it is open, over that transport; Close closes it, and fails with
	// content.InUse while somebody has it open.
	Served bool
	Close  func() error
}

// Attach has the node be a reader of what the bucket has of a volume now, and returns what
// is to be served then. With fresh false that is served already: it is of this moment, or
// somebody has it open, and keeps the moment that it is of.
func (s Source) Attach(ctx context.Context, q Ask) (e index.Entry, fresh bool, err error) {
	e, made, err := s.prepare(ctx, q)
	if err != nil || !made && q.Served {
		return e, false, err
	}
	if err = q.Close(); err == nil && made {
		err = s.Index.Replace(e)
	}
	if err != nil && made {
		err = errors.Join(err, s.Index.GiveUp(e))
	}
	if errors.Is(err, content.InUse) && q.Served {
		return q.Old, false, nil
	}
	return e, true, err
}

// prepare makes the folder of a reader, unless there is one of the same moment.
func (s Source) prepare(ctx context.Context, q Ask) (e index.Entry, made bool, err error) {
	r, body, err := s.Records.Folded(ctx, q.Name)
	for range records.Tries {
		switch {
		case err != nil:
			return e, false, err
		case r.Farm != s.Farm:
			return e, false, fmt.Errorf("%w: it belongs to farm %s: ask a node of that farm", content.ErrForbidden, r.Farm)
		case q.Old.Reader && isOf(q.Old.Volume, body):
			return q.Old, false, nil
		}
		if e, err = s.make(ctx, q, body); err == nil {
			return e, true, nil
		}
		failed, was := err, body
		r, body, err = s.Records.Folded(ctx, q.Name)
		if err != nil || isOf(was, body) { // else a fold went on meanwhile, and took what was to be read
			return e, false, failed
		}
	}
	return e, false, records.Busy()
}

// isOf reports whether two records say the same of what the bucket has of a volume.
func isOf(a, b catalog.Volume) bool {
	return a.ID == b.ID && a.Size == b.Size && a.Base == b.Base && (a.Head == nil) == (b.Head == nil) && slices.Equal(a.Segments, b.Segments) &&
		(a.Head == nil || a.Head.Root == b.Head.Root)
}

// make fills a folder with what a record names.
func (s Source) make(ctx context.Context, q Ask, body catalog.Volume) (index.Entry, error) {
	body.ReadOnly = true // here; the record is not written by it
	segments := s.Bucket.Stored(ctx, body.Segments, nil)
	e := index.Entry{
		Name: q.Name, Volume: body, Transport: q.Transport, Disk: q.Old.Disk, Created: s.Now(), Made: Made(ctx, s.Base, s.Records.Codec, body), Ancestors: journal.Ancestors(segments, body.ID),
		Committed: true, Attached: true, Empty: true, Adopted: true, Reader: true,
	}
	if q.Old.Name == "" {
		if err := s.Index.Free(q.Name); err != nil {
			return e, err
		}
	}
	if err := s.Index.Prepare(e); err != nil {
		return e, err
	}
	err := journal.Adopt(s.Index.HalfMade(e), e.ID, segments, s.At)
	if err == nil {
		e.Tried = []right.Stamp{right.StampOf(body)} // all of it is here
		err = s.Index.Rewrite(e)
	}
	if err != nil {
		return e, errors.Join(err, s.Index.GiveUp(e))
	}
	return e, nil
}

const (
	// askTimeout is how long a member may take to say whether it reads a volume; one that
	// does not is none that reads.
	askTimeout  = 3 * time.Second
	askParallel = 16
)

// Method asks a member whether it reads a volume, by its name.
const Method = "volume/reads"

// Answer is what a member answers to that.
func Answer(x *index.Index, name string) []byte {
	if e, _ := x.Get(name); e.Reader {
		return []byte("yes")
	}
	return nil
}

// Farm is who may read a volume beside this node.
type Farm struct {
	Live func() []trust.PublicKey
	Call func(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error)
	Who  func(trust.PublicKey) string
}

// MayMove fails where a member to which a volume is to be moved does not answer, or reads it.
func (f Farm) MayMove(ctx context.Context, to trust.PublicKey, who, name string) error {
	switch yes, err := f.Call(ctx, to, Method, []byte(name)); {
	case err != nil:
		return fmt.Errorf("%s does not answer: %w", who, err)
	case len(yes) > 0:
		return fmt.Errorf("%w: %s reads it: detach it there first", content.ErrConflict, who)
	}
	return nil
}

// MayRemove fails where a volume is only read, and with content.InUse, which says by whom,
// while other members read it, unless it is forced.
func (f Farm) MayRemove(ctx context.Context, e index.Entry, force bool) error {
	switch {
	case e.Reader:
		return fmt.Errorf("%w: it is only read here: detach it, and remove it where it is written, which `grange volume ls --all` says", content.ErrConflict)
	case force || !e.Committed:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(askParallel)
	members := f.Live()
	by := make([]string, len(members))
	for i, m := range members {
		group.Go(func() error {
			if yes, err := f.Call(ctx, m, Method, []byte(e.Name)); err == nil && len(yes) > 0 {
				by[i] = f.Who(m)
			}
			return nil
		})
	}
	_ = group.Wait() // none fails
	by = slices.DeleteFunc(by, func(who string) bool { return who == "" })
	if slices.Sort(by); len(by) > 0 {
		return fmt.Errorf("%w: it is read on %s: detach it there, or force it: they keep what they read", content.InUse, strings.Join(by, ", "))
	}
	return nil
}
