// Package mem keeps a bucket in memory: for tests and simulations. It is an
// oracle: a use that a real store would punish later, or never, fails the test at
// once. Faults, latency and rates are hooks.
//
// Like S3 it derives ETags from the content, so that a writer that trusts an
// ETag although the object went away and came back is found out.
package mem

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// Op is one of the four calls of a bucket.
type Op string

// The calls.
const (
	Get    Op = "get"
	Put    Op = "put"
	List   Op = "list"
	Delete Op = "delete"
)

// Call describes a request to the hooks.
type Call struct {
	Op Op
	// Key, or the prefix of a List.
	Key string
	// Range of a Get, Cond of a Put.
	Range bucket.Range
	Cond  bucket.Condition
}

// Fault makes a call fail. The zero Fault does not.
type Fault struct {
	// Err is what the caller gets.
	Err error
	// Applied does the work before failing: a Put or Delete is carried out and
	// its reply lost, the body of a Get breaks in its middle, a List after its
	// first half.
	Applied bool
}

// Reporter is told of misuse; a testing.TB is one.
type Reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

// Config is what a Bucket is built from. The zero Config has no faults and takes
// no time.
type Config struct {
	// Fault is asked about each call, from many goroutines; nil means none.
	Fault func(Call) Fault
	// Wait is called at the start of each call and may hold it up, as latency
	// would. An error of it is the call's, not applied.
	Wait func(context.Context, Call) error
	// Now is the store's clock; nil means time.Now.
	Now func() time.Time
	// MayReadDeleted allows reading an immutable object after it was deleted. A
	// test of a committer that looks whether its packs are still there sets it;
	// for anybody else such a read is lost data.
	MayReadDeleted bool
}

// stubMax is the length of a pack without frames: a header and a footer.
const stubMax = 272

// Bucket is a bucket in memory. Safe for concurrent use.
type Bucket struct {
	t   Reporter
	cfg Config

	mu      sync.Mutex        // guards what follows
	objects map[string]object // by key
	deleted map[string]bool   // immutable keys that were deleted
	counts  map[Op]int
}

type object struct {
	data     []byte // never changed
	etag     string
	modified time.Time
}

// New builds an empty bucket that tells t of misuse.
func New(t Reporter, cfg Config) *Bucket {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Bucket{t: t, cfg: cfg, objects: map[string]object{}, deleted: map[string]bool{}, counts: map[Op]int{}}
}

// begin counts a call, lets it wait, and asks for its fault.
func (b *Bucket) begin(ctx context.Context, c Call) (Fault, error) {
	b.t.Helper()
	b.mu.Lock()
	b.counts[c.Op]++
	b.mu.Unlock()
	if c.Op != List {
		if err := bucket.CheckKey(c.Key); err != nil {
			b.t.Errorf("mem: %s: %v", c.Op, err)
			return Fault{}, fmt.Errorf("%s: %w", c.Op, err)
		}
	}
	var f Fault
	if b.cfg.Wait != nil {
		f.Err = b.cfg.Wait(ctx, c)
	}
	if f.Err = cmp.Or(f.Err, ctx.Err()); f.Err == nil && b.cfg.Fault != nil {
		f = b.cfg.Fault(c)
	}
	if f.Err == nil {
		return Fault{}, nil
	}
	if f.Err = fmt.Errorf("%s %s: %w", c.Op, c.Key, f.Err); f.Applied {
		return f, nil
	}
	return Fault{}, f.Err
}

func (b *Bucket) info(key string, o object) bucket.Info {
	return bucket.Info{Key: key, Size: int64(len(o.data)), ETag: o.etag, Modified: o.modified, Now: b.cfg.Now()}
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	b.t.Helper()
	fault, err := b.begin(ctx, Call{Op: Get, Key: key, Range: r})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	o, ok := b.objects[key]
	gone := b.deleted[key]
	b.mu.Unlock()
	if !ok {
		if gone && !b.cfg.MayReadDeleted {
			b.t.Errorf("mem: read of %s, which was deleted: somebody still needed it", key)
		}
		return nil, fmt.Errorf("get %s: %w", key, content.ErrNotFound)
	}
	off, length, err := r.Within(int64(len(o.data)))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	part := o.data[off : off+length]
	var body io.Reader = bytes.NewReader(part)
	if fault.Err != nil {
		body = io.MultiReader(bytes.NewReader(part[:length/2]), broken{fault.Err})
	}
	return &bucket.Object{Info: b.info(key, o), Body: io.NopCloser(body)}, nil
}

// broken is the end of a body that breaks.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	b.t.Helper()
	fault, err := b.begin(ctx, Call{Op: Put, Key: key, Cond: cond})
	if err != nil {
		return bucket.Info{}, err
	}
	data := make([]byte, body.Size())
	if n, err := body.ReadAt(data, 0); n < len(data) {
		return bucket.Info{}, fmt.Errorf("put %s: %w: body: %w", key, content.ErrUnavailable, err)
	}
	sum := content.Sum(data)
	o := object{data, `"` + hex.EncodeToString(sum[:16]) + `"`, b.cfg.Now()}
	err = b.store(key, o, cond)
	if fault.Err != nil {
		err = fault.Err // the reply was lost, whatever it would have been
	}
	if err != nil {
		return bucket.Info{}, err
	}
	return b.info(key, o), nil
}

func (b *Bucket) store(key string, o object, cond bucket.Condition) error {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	old, exists := b.objects[key]
	if cond.Absent() && exists || cond.ETag() != "" && (!exists || old.etag != cond.ETag()) {
		return fmt.Errorf("put %s: %w", key, bucket.ErrPrecondition)
	}
	stub := len(o.data) <= stubMax && cond.ETag() != "" // what a pack that was written anew leaves under its old name
	if exists && content.IsImmutableKey(key) && !bytes.Equal(old.data, o.data) && !stub {
		b.t.Errorf("mem: put of %s: an immutable object was given other bytes", key)
		return fmt.Errorf("put %s: %w", key, content.ErrConflict)
	}
	b.objects[key] = o
	delete(b.deleted, key)
	return nil
}

// List implements bucket.Bucket. What it yields is the state when it is called.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		fault, err := b.begin(ctx, Call{Op: List, Key: prefix})
		if err != nil {
			yield(bucket.Info{}, err)
			return
		}
		infos := b.listed(prefix, after)
		if fault.Err != nil {
			infos = infos[:len(infos)/2]
		}
		for i, info := range infos {
			if i > 0 && i%bucket.PageSize == 0 {
				if _, err := b.begin(ctx, Call{Op: List, Key: prefix}); err != nil {
					yield(bucket.Info{}, err)
					return
				}
			}
			if !yield(info, nil) {
				return
			}
		}
		if fault.Err != nil {
			yield(bucket.Info{}, fault.Err)
		}
	}
}

func (b *Bucket) listed(prefix, after string) []bucket.Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	var infos []bucket.Info
	for _, key := range slices.Sorted(maps.Keys(b.objects)) {
		if strings.HasPrefix(key, prefix) && key > after {
			infos = append(infos, b.info(key, b.objects[key]))
		}
	}
	return infos
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	b.t.Helper()
	fault, err := b.begin(ctx, Call{Op: Delete, Key: key})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.objects[key]; ok && content.IsImmutableKey(key) {
		b.deleted[key] = true
	}
	delete(b.objects, key)
	return fault.Err
}

// Count returns how many calls of op were made; a List is one for each page.
func (b *Bucket) Count(op Op) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[op]
}

// Keys returns the keys with that prefix, in order, without a request.
func (b *Bucket) Keys(prefix string) []string {
	var keys []string
	for _, info := range b.listed(prefix, "") {
		keys = append(keys, info.Key)
	}
	return keys
}

// Corrupt lets change alter the bytes of an object behind everybody's back, as
// a rotten disk would.
func (b *Bucket) Corrupt(key string, change func([]byte)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.objects[key]
	o.data = bytes.Clone(o.data)
	change(o.data)
	b.objects[key] = o
}
