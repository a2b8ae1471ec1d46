package garbage

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

const (
	// readsAtOnce bounds the requests in flight.
	readsAtOnce = 16
	// segmentsMax bounds the objects of journals that are listed, some 200 bytes each: those of a million volumes, as a
	// fold deletes its own.
	segmentsMax = 4 << 20
	// youngFor is how long a pack is taken for one that whoever put it may name without a look: SureFor, and what its name may
	// be off by, an hour of a node's clock and as long as it took to fill and put.
	youngFor = 3 * time.Hour
	// probeAge is how old what a start of a node has left behind is at least.
	probeAge = 24 * time.Hour
)

// survey is what lies at an origin, beside its records.
type survey struct {
	began    time.Time // by the store's clock, before anything was listed
	batches  []Batch
	packs    table
	moved    map[pack.ID]pack.ID // what stubs say
	lost     []pack.ID           // stubs that can't be read
	suspects []pack.ID           // that marks say are damaged
	journals []segment
	scopes   []content.Scope // that have packs or index objects
	probes   []string
	total    Amount // of packs and journals
	other    Amount // of all else but records
}

// segment is an object of a journal.
type segment struct {
	key   string
	ref   content.SegmentRef // as far as its key says
	tail  bool
	size  int64
	state rowState
}

// look lists all but the records, and reads the batches and stubs. What is not known here is content.ErrUnknown.
func look(ctx context.Context, at *dated) (*survey, error) {
	s := &survey{moved: map[pack.ID]pack.ID{}}
	for b, err := range batches(ctx, at) {
		if err != nil {
			return nil, err
		}
		s.batches = append(s.batches, b)
	}
	for info, err := range at.List(ctx, "", "") {
		if err == nil {
			if s.began.IsZero() {
				s.began = info.Now
			}
			err = s.take(info, at)
		}
		if errors.Is(err, errPast) {
			break
		}
		if err != nil {
			return nil, listing("the origin", err)
		}
	}
	for _, id := range s.suspects {
		if r := s.packs.find(id); r != nil {
			r.state |= isSuspect
		}
	}
	// What lies behind the records is of no space that is known.
	for info, err := range at.List(ctx, "", strings.TrimSuffix(string(content.KeyRecords), "/")+"0") {
		if err == nil {
			err = fmt.Errorf("%s: %w", info.Key, content.ErrUnknown)
		}
		return nil, listing("the origin", err)
	}
	return s, s.readStubs(ctx, at)
}

// listing says why a list is of no use, and what to do.
func listing(what string, err error) error {
	if errors.Is(err, content.ErrUnknown) {
		return fmt.Errorf("list %s: %w; move it elsewhere if nothing of the mesh has put it there", what, err)
	}
	return fmt.Errorf("list %s: %w", what, err)
}

var errPast = errors.New("the records begin") // ends a list

func (s *survey) take(info bucket.Info, at *dated) error {
	space := content.KeySpace(info.Key[:strings.IndexByte(info.Key, '/')+1])
	switch space {
	case content.KeyRecords:
		return errPast
	case content.KeyPacks:
		return s.takePack(info)
	case content.KeyJournals:
		return s.takeSegment(info)
	case content.KeyProbes:
		if at.now().Sub(info.Modified) > probeAge {
			s.probes = append(s.probes, info.Key)
		}
	case content.KeyIndexes:
		ext := path.Ext(info.Key)
		id, err := pack.CutKey(info.Key, space, ext) // named like a pack
		if err != nil {
			return fmt.Errorf("%s: %w: %w", info.Key, content.ErrUnknown, err)
		}
		if s.scope(id.Scope()); ext == index.SuspectSuffix {
			s.suspects = append(s.suspects, id)
		}
	case content.KeyGarbage: // as read before
	default:
		if info.Key != content.KeyMesh {
			return fmt.Errorf("%s: %w", info.Key, content.ErrUnknown)
		}
	}
	s.other.Add(info.Size)
	return nil
}

func (s *survey) scope(scope content.Scope) {
	if !slices.Contains(s.scopes, scope) {
		s.scopes = append(s.scopes, scope)
	}
}

func (s *survey) takePack(info bucket.Info) error {
	id, err := pack.ParseKey(info.Key)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", info.Key, content.ErrUnknown, err)
	}
	s.total.Add(info.Size)
	s.scope(id.Scope())
	return s.packs.add(id, min(info.Size, pack.SizeMax), s.age(id))
}

func (s *survey) takeSegment(info bucket.Info) error {
	ref, tail, err := content.ParseJournalKey(info.Key)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", info.Key, content.ErrUnknown, err)
	}
	if len(s.journals) == segmentsMax {
		return fmt.Errorf("%w: there are more than %d segments of journals, as many as a collection knows", content.ErrInvalid, segmentsMax)
	}
	s.total.Add(info.Size)
	s.journals = append(s.journals, segment{key: info.Key, ref: ref, tail: tail, size: info.Size})
	return nil
}

// age tells a pack that was put just now, as far as its name says: whoever has put it may name it without a look. When the
// store says that it was written tells nothing, and of segments nothing has to: a record has their volume before they are put.
func (s *survey) age(id pack.ID) rowState {
	if _, r := parts(id); hourOf(s.began.Add(-youngFor)) <= r.hour && r.hour <= hourOf(s.began.Add(youngFor)) {
		return isYoung
	}
	return 0
}

// segment returns an object of a journal by its key; nil for none.
func (s *survey) segment(key string) *segment {
	i, ok := slices.BinarySearchFunc(s.journals, key, func(x segment, key string) int { return strings.Compare(x.key, key) })
	if !ok {
		return nil
	}
	return &s.journals[i]
}

// readStubs learns where packs moved to. A stub that can't be read leaves that open.
func (s *survey) readStubs(ctx context.Context, at *dated) error {
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	var mu sync.Mutex // guards moved
	for i := range s.packs.rows {
		r := &s.packs.rows[i]
		if !r.state.is(isStub) {
			continue
		}
		group.Go(func() error {
			id := s.packs.id(r)
			f, err := pack.ReadFooter(reading, at, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && content.IsDamage(err) {
				s.lost = append(s.lost, id)
				return nil
			}
			s.moved[id] = f.Moved()
			return err
		})
	}
	return group.Wait()
}
