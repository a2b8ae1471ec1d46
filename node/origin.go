package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

const (
	// originTimeout bounds one look whether the origin answers.
	originTimeout = 5 * time.Second
	// restartTimeout bounds the first look of a member that restarts: it has
	// volumes to serve, and a silent store is looked for again.
	restartTimeout = 1500 * time.Millisecond
	// originInterval is how often that is looked at while it does, and
	// originRetry while it does not.
	originInterval = 15 * time.Second
	originRetry    = time.Second
	// lookAsker has looks share turns with all whom this node reads for: none is long in coming.
	lookAsker = "look"
	// hastyTries and hastyWithin are the patience of a fetch with the store: it has
	// others to ask, and asks again.
	hastyTries  = 3
	hastyWithin = 500 * time.Millisecond
)

// Origin is how the object store stands.
type Origin struct {
	URL         string  `json:"url,omitempty"`
	State       string  `json:"state" enum:"none,ok,read-only,unreachable,refused"`
	Detail      string  `json:"detail,omitempty"`
	Requests    int64   `json:"requests" doc:"sent to it, repeated ones too"`
	BytesIn     int64   `json:"bytes_in" doc:"bytes read from it, metadata included"`
	RateMax     int64   `json:"bytes_per_second_max,omitempty" doc:"that this node reads at most; 0: no limit"`
	RequestsMax float64 `json:"requests_per_second_max,omitempty" doc:"that it sends at most; 0: no limit"`
}

// The states of an origin.
const originNone, originOK, originReadOnly, originUnreachable, originRefused = "none", "ok", "read-only", "unreachable", "refused"

// origin is the object store of this node: there or not, writable or not. A node
// works without one; it is looked for again and again.
type origin struct {
	cfg     Config
	member  *membership.Membership
	recall  func(content.Kind, string) (catalog.Record, bool)
	back    func() // is called when it can be read again
	url     string
	corrupt prometheus.Counter
	budget  *budget.Budget // for the truth
	doubt   chan struct{}  // somebody was not answered: it is to be looked at

	suspects sync.Map // packs that importers were told of, by pack.ID

	mu     sync.RWMutex // guards what follows
	stands standing
}

// standing is how the origin stands.
type standing struct {
	answers bool // reads, whatever becomes of writes
	safe    bool // to write to, as was found out; one that was only away is it still
	state   string
	detail  string
	store
}

// store is the bucket and its mirrors once they were opened, and what reads there.
type store struct {
	bucket  bucket.Bucket
	counted *bucket.Metrics
	catalog *catalog.Catalog
	packs   *pack.Reader
}

func (o *origin) now() standing {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.stands
}

// newOrigin is none until it is opened. recall returns records that were checked before,
// and back is called when it can be read again.
func newOrigin(cfg Config, member *membership.Membership, recall func(content.Kind, string) (catalog.Record, bool), back func()) *origin {
	corrupt := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "grange", Subsystem: "origin", Name: "corrupt_reads_total", Help: "Reads of packs that brought other bytes than their hashes say.",
	})
	return &origin{cfg: cfg, member: member, recall: recall, back: back, stands: standing{state: originNone}, corrupt: corrupt, budget: budget.New(cfg.OriginLimits), doubt: make(chan struct{}, 1)}
}

// open opens the bucket and looks at it once. A node starts without one that does
// not answer, and finds it later; the wrong one is refused.
func (o *origin) open(ctx context.Context) error {
	said := "the origin that " + o.cfg.Dir + " remembers, "
	o.url = o.member.State().Origin
	if len(o.cfg.Origins) > 0 {
		said, o.url = "--origin ", o.cfg.Origins[0]
	}
	if o.url == "" {
		return nil
	}
	if !o.member.State().Fresh {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, restartTimeout)
		defer cancel()
	}
	err := o.look(ctx)
	switch {
	case err == nil || errors.Is(err, content.ErrUnavailable):
		return nil
	case errors.Is(err, content.ErrReadOnly) && !o.founder() && o.readable() != nil:
		return nil
	}
	return fmt.Errorf("%s%s: %w", said, o.url, err)
}

func (o *origin) connect(ctx context.Context) (s store, err error) {
	if s.bucket, s.counted, err = o.cfg.OpenOrigin(ctx, o.url); err != nil {
		return s, err
	}
	var mirrors []bucket.Bucket
	for _, url := range o.cfg.Origins[min(1, len(o.cfg.Origins)):] {
		m, _, err := o.cfg.OpenOrigin(ctx, url)
		if err != nil {
			return s, fmt.Errorf("--origin %s: %w", url, err)
		}
		mirrors = append(mirrors, bucket.Limit(m, budget.New(o.cfg.OriginLimits)))
	}
	s.bucket = bucket.Mirrors(bucket.Limit(s.bucket, o.budget), mirrors...)
	s.packs = pack.NewReader(bucket.Retry(s.bucket, bucket.RetryConfig{Tries: hastyTries, WithinMax: hastyWithin}))
	s.bucket = bucket.Retry(s.bucket, bucket.RetryConfig{Lost: o.lost})
	s.catalog, err = catalog.New(catalog.Config{Bucket: s.bucket, Verifier: o.member.Verifier(), Signer: o.member.Signer(), Recall: o.recall, Now: o.cfg.Now})
	return s, err
}

// beside opens another store than the origin, and not in it: of what is there nobody knows whether it is garbage.
func (o *origin) beside(ctx context.Context, url string) (bucket.Bucket, error) {
	if bucket.Within(url, o.url) {
		return nil, fmt.Errorf("%w: it lies in the origin %s; give a folder or prefix beside that", content.ErrInvalid, withoutCredentials(o.url))
	}
	b, _, err := o.cfg.OpenOrigin(ctx, url)
	if err != nil {
		return nil, err
	}
	return bucket.Retry(bucket.Limit(b, budget.New(o.cfg.OriginLimits)), bucket.RetryConfig{}), nil
}

// opened returns the bucket, which it opens if that did not go well before.
func (o *origin) opened(ctx context.Context) (bucket.Bucket, error) {
	if b := o.now().bucket; b != nil {
		return b, nil
	}
	s, err := o.connect(ctx)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stands.store = s
	return s.bucket, nil
}

// founder reports whether this node made the mesh, and the origin is the one that it made it with.
func (o *origin) founder() bool {
	return o.member.State().Founder && o.member.State().Origin == o.url
}

// mayClaim reports whether an empty bucket may become the mesh's: the founder's first, or another than the mesh has, that the
// operator has named. One that was the mesh's and is empty now has lost what it held.
func (o *origin) mayClaim() bool {
	s := o.member.State()
	if s.Origin == o.url {
		return s.Founder && !s.Seen
	}
	return len(o.cfg.Origins) > 0
}

// remember keeps the URL of an origin that was found good, and of no other.
func (o *origin) remember() {
	if err := o.member.SawOrigin(o.url); err != nil {
		o.cfg.Log.Warn("a start without --origin would not know this one", "url", withoutCredentials(o.url), "err", err)
	}
}

func (o *origin) unclaimed() error {
	if o.member.State().Seen {
		return fmt.Errorf("%w: it was this mesh's, and nothing of the mesh is in it any more; restore it from a backup, or give --origin another bucket or folder to begin an empty one", content.ErrCorrupt)
	}
	return nothingThere(o.url)
}

// nothingThere is for the origin of a mesh that is empty where this node looks: of
// another host's folder a member knows the name only, and that is another folder here.
func nothingThere(url string) error {
	return fmt.Errorf("%w: the mesh's origin is %s, and nothing of the mesh is there on this host; give --origin one that this node reaches", content.ErrUnavailable, url)
}

// inTime names the limit that an answer has missed.
func inTime(ctx context.Context, begun time.Time, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, content.ErrUnavailable) {
		return fmt.Errorf("%w: no answer within %s", content.ErrUnavailable, time.Since(begun).Round(100*time.Millisecond))
	}
	return err
}

// look finds out whether the origin answers and takes writes.
func (o *origin) look(ctx context.Context) error {
	stopping := ctx
	ctx, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	begun := time.Now()
	if o.url == "" {
		return nil
	}
	b, err := o.opened(ctx)
	if err != nil {
		o.settle(err)
		return err
	}
	safe := o.now().safe
	err = catalog.CheckMesh(budget.With(ctx, budget.NewTurn(budget.Needed, lookAsker)), b, o.member.Verifier().Mesh())
	if waits := errors.Is(err, budget.ErrNoTurn) || errors.Is(err, bucket.ErrSlowDown); waits && o.readable() != nil {
		return nil // it is there, and asked by others
	}
	if !errors.Is(stopping.Err(), context.Canceled) {
		o.answered(err == nil)
	}
	fresh := errors.Is(err, content.ErrNotFound)
	if fresh && !o.mayClaim() {
		err = o.unclaimed()
	} else if (err == nil || fresh) && !safe { // a sick store might never pass
		if err = bucket.Probe(ctx, b); err == nil && fresh {
			err = catalog.ClaimMesh(ctx, b, o.member.Verifier().Mesh())
		}
		if err == nil {
			o.remember()
		}
	}
	if err != nil && errors.Is(stopping.Err(), context.Canceled) {
		return err // which says nothing of the origin
	}
	err = inTime(ctx, begun, err)
	o.settle(err)
	return err
}

// answered notes whether the origin can be read; who waits for that reads again at once.
func (o *origin) answered(reads bool) {
	o.mu.Lock()
	before := o.stands.answers
	o.stands.answers = reads
	o.mu.Unlock()
	if reads && !before {
		o.back()
	}
}

// settle notes how a look ended.
func (o *origin) settle(err error) {
	state, detail := originOK, ""
	switch {
	case err == nil:
	case errors.Is(err, content.ErrReadOnly):
		state, detail = originReadOnly, content.Line(err)
	case errors.Is(err, content.ErrUnavailable):
		state, detail = originUnreachable, content.Line(err)
	default:
		state, detail = originRefused, content.Line(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := &o.stands
	now.safe = state == originOK || now.safe && state == originUnreachable
	now.answers = state == originOK || state == originReadOnly || now.answers && state == originUnreachable
	if state != now.state {
		level := slog.LevelInfo
		if state == originUnreachable || state == originRefused {
			level = slog.LevelWarn
		}
		o.cfg.Log.Log(context.Background(), level, "origin", "url", withoutCredentials(o.url), "state", state, "detail", detail)
	}
	now.state, now.detail = state, detail
}

// watch looks at the origin until ctx ends. Its state is what the looks find out, never
// what befell one request of somebody's.
func (o *origin) watch(ctx context.Context) error {
	for {
		if !sleep(ctx, originRetry, nil) || o.readable() != nil && !sleep(ctx, originInterval, o.doubt) {
			return nil
		}
		o.look(ctx)
	}
}

// sleep waits for so long, or until it is woken; false when ctx has ended.
func sleep(ctx context.Context, most time.Duration, wake <-chan struct{}) bool {
	select {
	case <-wake:
	case <-time.After(most):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// readable returns the bucket while it can be read.
func (o *origin) readable() bucket.Bucket {
	if s := o.now(); s.answers {
		return s.bucket
	}
	return nil
}

// reader returns what fetches read packs through, nil while there is nothing.
func (o *origin) reader() fetch.Origin {
	if s := o.now(); s.answers {
		return watched{s.packs, o}
	}
	return nil
}

func (o *origin) records() *catalog.Catalog {
	if s := o.now(); s.answers {
		return s.catalog
	}
	return nil
}

// writable returns the bucket, or says why nothing can be written to it.
func (o *origin) writable() (bucket.Bucket, error) {
	s := o.now()
	switch s.state {
	case originOK:
		return s.bucket, nil
	case originReadOnly:
		return nil, fmt.Errorf("the origin %s: %w: %s", o.url, content.ErrReadOnly, strings.TrimPrefix(s.detail, content.ErrReadOnly.Error()+": "))
	case originNone:
		return nil, fmt.Errorf("this node has no origin: %w", content.ErrUnavailable)
	}
	return nil, fmt.Errorf("the origin %s: %w: %s", o.url, content.ErrUnavailable, s.detail)
}

func (o *origin) writer() *catalog.Catalog {
	if _, err := o.writable(); err != nil {
		return nil
	}
	return o.records()
}

// lost has the origin looked at, which has just failed to answer: a caller that went
// away, or a refusal, says nothing of it. Where a look itself was not answered, watch has the next one.
func (o *origin) lost(err error) {
	if !errors.Is(err, content.ErrUnavailable) || errors.Is(err, bucket.ErrSlowDown) || errors.Is(err, context.Canceled) {
		return
	}
	select {
	case o.doubt <- struct{}{}:
	default:
	}
}

// watched is a pack reader that tells the origin when it is not there, or bad.
type watched struct {
	*pack.Reader
	o *origin
}

func (w watched) Stream(ctx context.Context, frames []pack.Extent, take func(int, content.Verified)) error {
	err := w.Reader.Stream(ctx, frames, take)
	if err != nil {
		w.o.lost(err)
	}
	if errors.Is(err, content.ErrCorrupt) {
		w.o.corrupt.Inc()
	}
	return err
}

func (w watched) Relocate(ctx context.Context, e pack.Extent) (pack.Extent, error) {
	now, err := w.Reader.Relocate(ctx, e)
	if errors.Is(err, content.ErrCorrupt) {
		w.o.suspect(ctx, e.Pack)
	}
	return now, err
}

// suspect tells importers of packs that were found damaged, as far as this node may
// write, and each once: so content is stored anew when it is imported again.
func (o *origin) suspect(ctx context.Context, packs ...pack.ID) {
	store, err := o.writable()
	for _, id := range packs {
		if _, told := o.suspects.Load(id); told {
			continue
		}
		if err == nil {
			err = index.Suspect(ctx, store, id)
		}
		if err != nil {
			o.cfg.Log.Warn("importers are not told that a pack is damaged", "pack", id, "err", err)
			return
		}
		o.suspects.Store(id, true)
		o.cfg.Log.Warn("a pack is damaged; import again what lies in it", "pack", id)
	}
}

func (o *origin) collectors() []prometheus.Collector {
	out := append(o.budget.Collectors(), o.corrupt)
	if counted := o.now().counted; counted != nil {
		out = append(out, counted.Collectors()...)
	}
	return out
}

func (o *origin) view() Origin {
	s := o.now()
	i := Origin{URL: o.url, State: s.state, Detail: s.detail, RateMax: o.cfg.OriginLimits.Bytes, RequestsMax: o.cfg.OriginLimits.Requests}
	if s.counted != nil {
		i.Requests, i.BytesIn = s.counted.Counts().Requests, s.counted.Counts().BytesIn
	}
	return i
}
