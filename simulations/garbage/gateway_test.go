package garbage

import (
	"context"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/soak"
)

// shifted is a store whose clock a test puts forward.
type shifted struct {
	bucket.Bucket

	mu    sync.Mutex // guards what follows
	ahead time.Duration
	put   map[string]time.Duration // by how much it was when an object was written
}

func (s *shifted) now() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ahead
}

func (s *shifted) later(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

func (s *shifted) dated(i bucket.Info) bucket.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.Now, i.Modified = i.Now.Add(s.ahead), i.Modified.Add(s.put[i.Key])
	return i
}

// Get implements bucket.Bucket.
func (s *shifted) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := s.Bucket.Get(ctx, key, r)
	if err == nil {
		o.Info = s.dated(o.Info)
	}
	return o, err
}

// Put implements bucket.Bucket.
func (s *shifted) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	i, err := s.Bucket.Put(ctx, key, body, cond)
	if err != nil {
		return i, err
	}
	s.mu.Lock()
	s.put[key] = s.ahead
	s.mu.Unlock()
	return s.dated(i), nil
}

// List implements bucket.Bucket.
func (s *shifted) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		for i, err := range s.Bucket.List(ctx, prefix, after) {
			if !yield(s.dated(i), err) {
				return
			}
		}
	}
}

// TestEveryOtherRequestFails: the same at a real S3 store, of which every other request fails, or loses its reply: all deeds,
// two nodes at once. Nodes repeat what they may repeat, as they do.
func TestEveryOtherRequestFails(t *testing.T) {
	server := buckettest.StartS3(t)
	server.Setenv(t)
	location, err := s3.ParseURL(server.URL("play"))
	if err != nil {
		t.Fatal(err)
	}
	origin, err := s3.Open(t.Context(), s3.Config{Location: location})
	if err != nil {
		t.Fatal(err)
	}
	store := &shifted{Bucket: origin, put: map[string]time.Duration{}}
	s := &stage{
		t: t, root: t.TempDir(), random: rand.New(rand.NewPCG(uint64(soak.Of(1, time.Now().UnixNano())), 7)), codec: content.NewCodec(), acked: map[trust.Commit]bool{},
		store: store, ahead: store.now, again: &bucket.RetryConfig{Wait: time.Millisecond},
	}
	s.wait = func(ctx context.Context, d time.Duration) error { store.later(d); return ctx.Err() }
	s.quiet = func() { s.deeds.Wait() }
	s.found()
	s.fated(everyOther())
	for range 2 {
		s.join(0)
	}
	for range soak.Of(3, 40) {
		for _, d := range deeds() {
			for _, p := range s.there() {
				if what, do := d.draw(s, p); do != nil {
					s.begins(p, what, do)
				}
			}
			s.quiet()
			s.pass(pick(s, 0, time.Hour, grace+time.Hour))
		}
		if s.whole("when all is quiet", false); s.failed() != nil {
			break
		}
	}
	s.fated(well)
	if s.failed() == nil {
		s.finish()
	}
	for _, p := range s.there() {
		p.end(errAway)
		p.close()
	}
	if s.failed() != nil {
		t.Fatalf("the first line that says WRONG tells:\n%s", s.told())
	}
}

// everyOther has every other request fail: in turn with nothing done, and with all done. Who puts can't know.
func everyOther() fate {
	var sent atomic.Int64
	return func(*process, mem.Op, string) verdict {
		n := sent.Add(1)
		if n%2 == 0 {
			return goes
		}
		return []verdict{unsure, lost}[n/2%2]
	}
}
