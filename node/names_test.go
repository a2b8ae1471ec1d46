package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/mem"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// farmSize is how many nodes of a farm want a name at once, and nameReads how often
	// the origin may be asked for it by all of them.
	farmSize  = 40
	nameReads = 3
)

// counted counts the requests for the records of images that all nodes make of a store.
type counted struct {
	store bucket.Bucket
	reads atomic.Int64
	first atomic.Pointer[func(*Node)] // told once of the node that asks next
}

// counting is the store as one node sees it.
type counting struct {
	bucket.Bucket
	c    *counted
	node atomic.Pointer[Node]
}

// Get implements bucket.Bucket.
func (b *counting) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if strings.HasPrefix(key, "records/image/") {
		b.c.reads.Add(1)
		if told := b.c.first.Swap(nil); told != nil {
			(*told)(b.node.Load())
			<-ctx.Done() // it never hears of the answer
		}
	}
	return b.Bucket.Get(ctx, key, r)
}

// freeAddr is one that nobody listens on, most likely.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// farmNode starts a node of the farm that gossips at join, or founds it there.
func farmNode(t *testing.T, c *counted, token, bind, join string) (n *Node, stop func()) {
	t.Helper()
	view := &counting{Bucket: c.store, c: c}
	cfg := Config{
		Dir: t.TempDir(), Name: "n", Join: token, Farm: "alpha", FarmBind: bind, Origins: []string{"mem:"}, Quota: 256 << 20,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Log: slog.New(slog.DiscardHandler),
		OpenOrigin: func(context.Context, string) (bucket.Bucket, *bucket.Metrics, error) { return view, nil, nil },
	}
	if join != "" {
		cfg.FarmJoin = []string{join}
	}
	n, err := New(t.Context(), cfg)
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	view.node.Store(n)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return n, stop
}

// TestAFarmOpensOneName has the nodes of a farm resolve and open one new name at once: the
// origin is asked for its record by few of them. So it is for one that is not there; and
// where the first that reads it dies of it, and then the others go on.
func TestAFarmOpensOneName(t *testing.T) {
	c := &counted{store: mem.New(t, mem.Config{})}
	gossip := freeAddr(t)
	first, stop := farmNode(t, c, "", gossip, "")
	all, stops := []*Node{first}, map[*Node]func(){first: stop}
	m := &mesh{t: t, first: first}
	var mu sync.Mutex
	var starting errgroup.Group
	starting.SetLimit(4)
	for range farmSize - 1 {
		token := m.token(trust.RoleNode)
		starting.Go(func() error {
			n, stop := farmNode(t, c, token, freeAddr(t), gossip)
			mu.Lock()
			defer mu.Unlock()
			all, stops[n] = append(all, n), stop
			return nil
		})
	}
	_ = starting.Wait()
	m.await("all know each other", func() bool {
		for _, n := range all {
			if n == nil || len(n.farm.Live()) != farmSize {
				return false
			}
		}
		return true
	})
	open := func(name string) (errs []error) {
		before := c.reads.Load()
		errs = make([]error, len(all))
		var wg sync.WaitGroup
		for i, n := range all {
			wg.Go(func() {
				r, err := n.Names.Resolve(t.Context(), "image:"+name, true)
				if err == nil && !r.Confirmed {
					err = errors.New("it is not confirmed")
				}
				if err == nil {
					_, err = n.Images.image(t.Context(), name)
				}
				errs[i] = err
			})
		}
		wg.Wait()
		reads := c.reads.Load() - before
		t.Logf("%s: %d requests for the record by %d nodes", name, reads, len(all))
		if reads > nameReads {
			t.Errorf("%s: %d requests for the record, want %d at most", name, reads, nameReads)
		}
		return errs
	}
	publish(t, first, "debian")
	c.reads.Store(0)
	for i, err := range open("debian") {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	for i, err := range open("none") {
		if !errors.Is(err, content.ErrNotFound) {
			t.Errorf("%d: %v", i, err)
		}
	}
	publish(t, first, "dying")
	var dying atomic.Pointer[Node]
	dies := func(n *Node) {
		dying.Store(n)
		go stops[n]()
	}
	c.reads.Store(0)
	c.first.Store(&dies)
	for i, err := range open("dying") {
		if err != nil && all[i] != dying.Load() {
			t.Errorf("%d: %v", i, err)
		}
	}
}
