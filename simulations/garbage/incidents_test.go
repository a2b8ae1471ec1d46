package garbage

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/soak"
)

// bubble has a test be played by two nodes, at a store that is well.
func bubble(t *testing.T, test func(s *stage, p, other *process)) {
	t.Helper()
	root, end := folder(t)
	defer end()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, root, 1)
		s.fated(well)
		s.join(0)
		s.join(0)
		test(s, s.nodes[0].p, s.nodes[1].p)
		for _, p := range s.there() {
			p.end(errAway)
			p.close()
		}
		if s.failed() != nil {
			t.Fatalf("the first line that says WRONG tells:\n%s", s.told())
		}
	})
}

// must ends a test with an error.
func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.told())
	}
}

// removed removes names.
func (p *process) removed(names ...string) {
	for _, name := range names {
		_, err := p.images.Remove(context.Background(), name)
		p.s.must(err)
	}
}

func (p *process) published(name string, seeds ...int) {
	p.s.must(p.publish(context.Background(), name, seeds))
}

// collected runs collections, each behind a grace.
func (p *process) collected(times int) {
	for range times {
		p.s.must(p.collect(context.Background(), 0.01))
		p.s.pass(grace + time.Hour)
	}
}

// keys are those that begin so.
func (s *stage) keys(prefix string) (out []string) {
	for info, err := range s.store.List(context.Background(), prefix, "") {
		s.must(err)
		out = append(out, info.Key)
	}
	return out
}

// TestAHalfDoneBatch is incident 2 (JuiceFS #5194, #5198, #7424: "pending delete" and "leaked" confused): a run ends at any of
// its requests, and another member's goes on with what it finds: a batch as it was, one that is condemned, or of which some
// is deleted. What lives stays, what is dead goes.
func TestAHalfDoneBatch(t *testing.T) {
	for at, ended := 0, false; !ended; at += stride() {
		bubble(t, func(s *stage, p, other *process) {
			p.published("a", 1, 2, 3)
			p.published("a", 1)
			p.published("b", 4, 5)
			p.removed("b")
			p.collected(1)
			var n atomic.Int64
			s.fated(func(who *process, _ mem.Op, _ string) verdict {
				if n.Add(1) > int64(at) && who == p {
					return fails
				}
				return goes
			})
			ended = p.collect(context.Background(), 0.01) == nil
			s.fated(well)
			s.pass(time.Hour)
			other.collected(1)
			s.whole("after the other's run", true)
			other.collected(2)
			s.whole("in the end", true)
			if left := s.dead(); len(left) > 0 {
				s.fault(errors.New("dead, and there: " + strings.Join(left, " ")))
			}
		})
	}
}

// stride is that of tests which do something at each request.
func stride() int { return soak.Of(3, 1) }

// TestAFreshPackWhoseRecordTakesDays is incident 3 (SlateDB #604, #984, #1028, #1035: what a writer had put and no manifest
// named yet was deleted): an importer stands still between its pack and its record until collections have deleted that. It
// is told by its commit, and what it reports is whole.
func TestAFreshPackWhoseRecordTakesDays(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		p.published("other", 9)
		once := sync.Once{}
		before := len(s.keys(string(content.KeyPacks)))
		s.fated(func(who *process, op mem.Op, key string) verdict {
			if who == p && op == mem.Put && strings.HasPrefix(key, "records/image/a") {
				once.Do(func() {
					other.collected(2)
					if n := len(s.keys(string(content.KeyPacks))); n != before {
						s.fault(errors.New("the fresh pack was not collected: this shows nothing"))
					}
				})
			}
			return goes
		})
		p.published("a", 1, 2)
		s.whole("when it is published", true)
		other.collected(3)
		s.whole("days later", true)
	})
}

// TestGraceBeginsWithTheTombstone is incident 4 (SlateDB #204: the grace counted from the upload): what is a month old when it
// dies is there for all of its grace.
func TestGraceBeginsWithTheTombstone(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		p.published("a", 1, 2)
		s.pass(30 * 24 * time.Hour)
		p.removed("a")
		before := len(s.keys(string(content.KeyPacks)))
		s.must(other.collect(context.Background(), 0.01))
		s.pass(grace - time.Hour)
		s.must(other.collect(context.Background(), 0.01))
		if n := len(s.keys(string(content.KeyPacks))); n != before {
			s.fault(errors.New("it went before its grace was over"))
		}
		s.pass(2 * time.Hour)
		s.must(other.collect(context.Background(), 0.01))
		if n := len(s.keys(string(content.KeyPacks))); n == before {
			s.fault(errors.New("it is there behind its grace"))
		}
	})
}

// TestTheEndOfAnEpochStays is incident 5 (SlateDB #355: the collection freed a number, and a stalled writer created it anew by
// put-if-absent, with success): the empty tail that ends an epoch orders the journal as long as the volume lives.
func TestTheEndOfAnEpochStays(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		ctx := context.Background()
		d, err := p.open(ctx, "disk", catalog.PolicyOrigin)
		s.must(err)
		s.must(d.write(ctx, []int64{1, 2}, 1))
		r, body, err := other.volumes.Volume(ctx, "disk")
		s.must(err)
		taker := &fold.Tails{Bucket: func() (bucket.Bucket, error) { return other.store, nil }, Dir: func() string { return other.dir }}
		_, err = taker.EndEpoch(ctx, body)
		s.must(err)
		body.Epoch, body.Incarnation, body.Holder = body.Epoch+1, 7, other.signer.Key.Public()
		_, err = other.volumes.PutVolume(ctx, "disk", &r, body)
		s.must(err)
		other.collected(3)
		if err := d.write(ctx, []int64{3}, 1); !errors.Is(err, content.ErrFenced) {
			s.fault(errors.Join(errors.New("the old writer's flush goes on"), err))
		}
		s.must(other.purge(ctx, "disk", true))
		other.collected(2)
		if left := s.keys(string(content.KeyJournals)); len(left) > 0 {
			s.fault(errors.New("the volume is dead, and there are " + strings.Join(left, " ")))
		}
	})
}

// TestWhatWasThereOnce is incident 6 (distribution #2094, #3743, #3800: a cached "exists" outlives the deletion): an importer
// whose cached index says where all is, of packs that are gone since.
func TestWhatWasThereOnce(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		p.published("a", 1, 2, 3)
		p.removed("a")
		other.collected(2)
		if left := s.keys(string(content.KeyPacks)); len(left) > 0 {
			s.fault(errors.New("they are there: " + strings.Join(left, " ")))
		}
		p.published("b", 1, 2, 3)
		s.whole("when it is published", true)
	})
}

// TestWhatIsNamedThroughOthers is incident 6 as well (distribution #4461: children of manifest lists unmarked): a fork of a
// snapshot of a fork, whose roots and segments are those of volumes that are gone.
func TestWhatIsNamedThroughOthers(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		ctx := context.Background()
		from, policies := "disk", []string{catalog.PolicyLocal, catalog.PolicyOrigin, catalog.PolicyLocal}
		for n, policy := range policies {
			if n > 0 {
				all := s.named(content.KindSnapshot)
				s.must(p.fork(ctx, from+"f", policy, all[len(all)-1]))
				s.must(p.purge(ctx, from, true))
				from += "f"
			}
			d, err := p.open(ctx, from, policy)
			s.must(err)
			for i := range 3 {
				s.must(d.write(ctx, []int64{int64(5*n + i), 100}, byte(n+1)))
				s.must(d.folds.Run(ctx, []fold.Want{fold.Safe, fold.Chunks, fold.Safe}[i]))
			}
			s.must(d.snapshot(ctx))
			s.must(d.folds.Run(ctx, fold.Safe))
		}
		s.must(p.purge(ctx, from, false)) // its snapshot stays
		other.collected(4)
		s.whole("when all but a snapshot is gone", true)
		if len(s.named(content.KindSnapshot)) != 1 || len(s.named(content.KindVolume)) != 0 {
			s.fault(errors.New("one snapshot was to be left"))
		}
		if left := s.dead(); len(left) > 0 {
			s.fault(errors.New("dead, and there: " + strings.Join(left, " ")))
		}
	})
}

// muddled is a store that says anything of when an object was written: what it was before it was rewritten, or a time to come.
type muddled struct {
	bucket.Bucket
	of string // keys that begin so
}

func (m muddled) said(i bucket.Info) bucket.Info {
	if !strings.HasPrefix(i.Key, m.of) {
		return i
	}
	i.Modified = i.Modified.Add(time.Duration(rand.Int64N(int64(60*24*time.Hour))) - 30*24*time.Hour)
	return i
}

// Get implements bucket.Bucket.
func (m muddled) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := m.Bucket.Get(ctx, key, r)
	if err == nil {
		o.Info = m.said(o.Info)
	}
	return o, err
}

// List implements bucket.Bucket.
func (m muddled) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		for i, err := range m.Bucket.List(ctx, prefix, after) {
			if !yield(m.said(i), err) {
				return
			}
		}
	}
}

// TestLastModifiedIsNotAsked is incident 9 (keiretsu-labs #2746: Garage returned the Last-Modified that a blob had before it was
// rewritten; kopia #1949, #2227, #4122): no grace hangs on it, and a store that is caught at it is trusted with nothing.
func TestLastModifiedIsNotAsked(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		store := s.store
		s.store = muddled{store, string(content.KeyPacks)}
		p.published("a", 1, 2)
		p.published("b", 3, 4)
		p.removed("a")
		before := len(s.keys(string(content.KeyPacks)))
		s.must(other.collect(context.Background(), 0.01))
		s.pass(grace - time.Hour)
		s.must(other.collect(context.Background(), 0.01))
		if n := len(s.keys(string(content.KeyPacks))); n != before {
			s.fault(errors.New("it went before its grace was over"))
		}
		s.pass(2 * time.Hour)
		other.collected(1)
		if n := len(s.keys(string(content.KeyPacks))); n == before {
			s.fault(errors.New("it is there behind its grace"))
		}
		s.whole("in the end", true)
		s.store = muddled{store, ""}
		if err := other.collect(context.Background(), 0.01); !errors.Is(err, content.ErrUnavailable) {
			s.fault(errors.Join(errors.New("a store that contradicts itself is trusted"), err))
		}
	})
}

// TestNamesThatMoveBesideMarks: a name is given and the one that it was given from is taken away while a collection reads the
// records, twice, a grace apart: each time it sees neither.
func TestNamesThatMoveBesideMarks(t *testing.T) {
	bubble(t, func(s *stage, p, other *process) {
		ctx := context.Background()
		p.published("a", 1, 2)
		for _, move := range [][2]string{{"a", "x"}, {"x", "y"}, {"y", "x"}} {
			once := sync.Once{}
			s.fated(func(who *process, op mem.Op, key string) verdict {
				if who == other && op == mem.Get && strings.HasPrefix(key, "records/image/") {
					once.Do(func() {
						_, err := p.images.Tag(ctx, move[0], move[1])
						s.must(err)
						p.removed(move[0])
					})
				}
				return goes
			})
			other.collected(1)
		}
		s.whole("after all moves", true)
	})
}
