package garbage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is an origin, the nodes that play there, and who lets each of their requests go when its time has come. It lives
// in a bubble, whose time is the store's.
type stage struct {
	t      *testing.T
	random *rand.Rand // the director's alone
	root   string     // folders are made in there
	store  bucket.Bucket
	ahead  func() time.Duration // of the store's clock and all nodes'
	wait   func(context.Context, time.Duration) error
	quiet  func() // returns when all that is under way waits for the director, or for time
	codec  *content.Codec
	mesh   trust.Signer // an admin of it
	check  *trust.Verifier
	trust  trust.Signer // the mesh itself
	nodes  []*node
	faults faults
	deeds  sync.WaitGroup
	again  *bucket.RetryConfig // how often nodes send a request; nil is once

	mu      sync.Mutex // guards what follows
	fate    fate       // nil where the director says
	waiting []*request
	late    []func()
	acting  int // deeds under way
	story   []string
	wrong   []error
	acked   map[trust.Commit]bool
	made    int
}

// fate says at once what becomes of a request.
type fate func(p *process, op mem.Op, key string) verdict

func (s *stage) fated(f fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate = f
}

// well has each request succeed at once.
func well(*process, mem.Op, string) verdict { return goes }

// faults are how many of a thousand requests fail, unheard or with their reply lost, or are carried out long after
// whoever sent them has given up.
type faults struct{ fail, lose, late int }

// request is one that waits to be let go.
type request struct {
	p    *process
	what string
	go_  chan verdict
}

// verdict is what becomes of a request.
type verdict int

const (
	goes   verdict = iota
	fails          // not applied
	unsure         // not applied, and whoever sent it can't know
	lost           // applied, and the reply lost
	later          // applied at some time, and the reply lost
)

// newStage is for a bubble: its store is in memory, and has the bubble's time.
func newStage(t *testing.T, root string, seed uint64) *stage {
	s := &stage{
		t: t, root: root, random: rand.New(rand.NewPCG(seed, 7)), codec: content.NewCodec(), acked: map[trust.Commit]bool{},
		ahead: func() time.Duration { return 0 }, quiet: synctest.Wait,
	}
	s.wait = func(ctx context.Context, d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.store = mem.New(misuse{s}, mem.Config{MayReadDeleted: true})
	return s.found()
}

// found makes the mesh, at a store that is new.
func (s *stage) found() *stage {
	key := trust.NewPrivateKey()
	s.trust = trust.Signer{Key: key}
	s.check = trust.NewVerifier(key.Public())
	s.mesh = s.member()
	if err := catalog.ClaimMesh(context.Background(), s.store, key.Public()); err != nil {
		s.fault(err)
	}
	return s
}

// member is an admin of the one farm, so that it may sign all that there is.
func (s *stage) member() trust.Signer {
	key := trust.NewPrivateKey()
	chain, err := s.trust.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: farm}, s.now().Add(-2*time.Hour))
	if err != nil {
		s.fault(err)
	}
	return trust.Signer{Key: key, Chain: chain}
}

// misuse has what the store finds wrong be a failure of the play.
type misuse struct{ *stage }

func (m misuse) Helper() {}

func (m misuse) Errorf(format string, args ...any) { m.fault(fmt.Errorf(format, args...)) }

// fault notes what must not be.
func (s *stage) fault(err error) {
	s.note("WRONG: %v", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, err)
}

func (s *stage) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.wrong...)
}

// note is a line of the story.
func (s *stage) note(format string, args ...any) {
	at := s.now().Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Round(time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.story = append(s.story, fmt.Sprintf("%9s  ", at)+fmt.Sprintf(format, args...))
}

func (s *stage) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.story, "\n")
}

func (s *stage) now() time.Time { return time.Now().Add(s.ahead()) }

// chance is true once in n.
func (s *stage) chance(n int) bool { return s.random.IntN(n) == 0 }

// pass lets time pass; what waits for it goes on meanwhile.
func (s *stage) pass(d time.Duration) {
	if d > 0 {
		_ = s.wait(context.Background(), d)
	}
}

// pause is how long a request is on its way: nothing, mostly, and now and then longer than the grace. Who looks a name up
// waits for seconds alone, so that little would be done if that took longer as often.
func (s *stage) pause(what string) time.Duration {
	switch n := s.random.IntN(200); {
	case strings.HasPrefix(what, "get "+string(content.KeyRecords)) && !s.chance(4):
		return 0
	case n < 168:
		return 0
	case n < 186:
		return time.Duration(s.random.Int64N(int64(90 * time.Second)))
	case n < 197:
		return time.Duration(s.random.Int64N(int64(time.Hour)))
	}
	return grace + time.Duration(s.random.Int64N(int64(6*time.Hour)))
}

// ready returns the requests that wait, in an order that hangs on chance as little as may be.
func (s *stage) ready() []*request {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.waiting, func(a, b *request) int { return cmp.Compare(a.p.at, b.p.at) })
	return slices.Clone(s.waiting)
}

func (s *stage) busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acting
}

// let lets one of the requests that wait go.
func (s *stage) let(calm bool) {
	all := s.ready()
	r := all[s.random.IntN(len(all))]
	if n := slices.IndexFunc(all, (*request).isProbe); n >= 0 {
		r = all[n]
	}
	v := goes
	if !calm {
		if d := s.pause(r.what); d > 0 && !r.isProbe() {
			s.pass(d)
			s.note("  %s waited: %s", d.Round(time.Second), r)
		}
		v = s.verdict()
	}
	if v != goes {
		s.note("  %s: %s", map[verdict]string{fails: "fails", unsure: "fails unheard", lost: "reply lost", later: "late"}[v], r)
	}
	r.answer(v)
}

func (s *stage) verdict() verdict {
	n := s.random.IntN(1000)
	for _, x := range []struct {
		of int
		v  verdict
	}{{s.faults.fail, fails}, {s.faults.fail, unsure}, {s.faults.lose, lost}, {s.faults.late, later}} {
		if n -= x.of; n < 0 {
			return x.v
		}
	}
	return goes
}

// carryOut carries one of the requests out that nobody waits for any more.
func (s *stage) carryOut() {
	s.mu.Lock()
	if len(s.late) == 0 {
		s.mu.Unlock()
		return
	}
	n := s.random.IntN(len(s.late))
	do := s.late[n]
	s.late = slices.Delete(s.late, n, n+1)
	s.mu.Unlock()
	do()
}

// isProbe reports whether a collection looks whether the store shows what was put just now: one that takes long is not trusted.
func (r *request) isProbe() bool { return strings.Contains(r.what, " "+string(content.KeyProbes)) }

func (r *request) String() string { return r.p.String() + " " + r.what }

// answer has the request go on; one that was answered, or given up, is left alone.
func (r *request) answer(v verdict) {
	s := r.p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := slices.Index(s.waiting, r); n >= 0 {
		s.waiting = slices.Delete(s.waiting, n, n+1)
		r.go_ <- v
	}
}

// lane is the way of one process to the store.
type lane struct{ p *process }

// errAway is what whoever is away hears of each request.
var errAway = fmt.Errorf("%w: the way to the store is cut", content.ErrUnavailable)

func (l lane) ask(ctx context.Context, op mem.Op, key string) (verdict, error) {
	s := l.p.s
	r := &request{l.p, string(op) + " " + key, make(chan verdict, 1)}
	s.mu.Lock()
	if l.p.dead {
		s.mu.Unlock()
		return fails, errAway
	}
	fate := s.fate
	if fate == nil {
		s.waiting = append(s.waiting, r)
	}
	s.mu.Unlock()
	if fate != nil {
		r.go_ <- fate(l.p, op, key)
	}
	select {
	case v := <-r.go_:
		switch {
		case v == fails, v == unsure && op != mem.Put:
			return fails, errAway
		case v == unsure:
			return fails, fmt.Errorf("%s: %w", key, bucket.ErrUnknown)
		}
		return v, nil
	case <-ctx.Done():
		r.answer(fails)
		return fails, context.Cause(ctx)
	}
}

// Get implements bucket.Bucket.
func (l lane) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	v, err := l.ask(ctx, mem.Get, key)
	if err != nil {
		return nil, err
	}
	o, err := l.p.s.store.Get(ctx, key, r)
	if err == nil && v != goes {
		o.Body = struct {
			io.Reader
			io.Closer // one that stays open keeps a connection, of which there are so many
		}{io.MultiReader(io.LimitReader(o.Body, o.Size/2), torn{}), o.Body}
	}
	return o, err
}

// torn is the end of a body that breaks.
type torn struct{}

func (torn) Read([]byte) (int, error) { return 0, errAway }

// Put implements bucket.Bucket.
func (l lane) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	v, err := l.ask(ctx, mem.Put, key)
	if err != nil {
		return bucket.Info{}, err
	}
	s := l.p.s
	if v == later {
		b := make([]byte, body.Size())
		if _, err := body.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			s.fault(err)
		}
		s.doLater("put "+key, func() error { _, err := s.store.Put(context.Background(), key, bucket.Bytes(b), cond); return err })
		return bucket.Info{}, bucket.ErrUnknown
	}
	info, err := s.store.Put(ctx, key, body, cond)
	if v == lost {
		return bucket.Info{}, fmt.Errorf("%s: %w", key, bucket.ErrUnknown)
	}
	return info, err
}

func (s *stage) doLater(what string, do func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late = append(s.late, func() { s.note("  late %s: %v", what, do()) })
}

// List implements bucket.Bucket.
func (l lane) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		v, err := l.ask(ctx, mem.List, prefix)
		if err != nil {
			yield(bucket.Info{}, err)
			return
		}
		n := 0
		for info, err := range l.p.s.store.List(ctx, prefix, after) {
			if n++; v != goes && n > 3 {
				yield(bucket.Info{}, errAway)
				return
			}
			if !yield(info, err) {
				return
			}
		}
		if v != goes {
			yield(bucket.Info{}, errAway)
		}
	}
}

// Delete implements bucket.Bucket.
func (l lane) Delete(ctx context.Context, key string) error {
	v, err := l.ask(ctx, mem.Delete, key)
	if err != nil {
		return err
	}
	s := l.p.s
	if v == later {
		s.doLater("delete "+key, func() error { return s.store.Delete(context.Background(), key) })
		return errAway
	}
	err = s.store.Delete(ctx, key)
	if v == lost {
		return errAway
	}
	return err
}

// begins has a process do something in the background.
func (s *stage) begins(p *process, what string, do func(context.Context) error) {
	s.note("%s: %s", p, what)
	s.mu.Lock()
	s.acting++
	p.acting++
	s.mu.Unlock()
	s.deeds.Go(func() {
		err := do(p.ctx)
		said := "done"
		if err != nil {
			said = content.Line(err)
		}
		s.note("%s: %s: %s", p, what, said)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.acting--
		p.acting--
	})
}

// drain has all that is under way end.
func (s *stage) drain(calm bool) {
	for s.quiet(); s.busy() > 0; s.quiet() {
		if len(s.ready()) > 0 {
			s.let(calm)
		} else {
			s.pass(time.Second) // somebody waits for that
		}
	}
}
