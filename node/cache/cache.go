package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/scratch"
)

const (
	// QuotaDefault is how much a cache may take when nothing is said.
	QuotaDefault = 20 << 30
	// quotaMin has room for a slab of each class, and some to turn over.
	quotaMin = 16 * slabSize
	// reserveShare of a disk stays free for others, in percent, and reserveMax at most.
	reserveShare, reserveMax = 5, 32 << 30
	// recheckAfter is how long a check of an object is good, while it is used.
	recheckAfter = 24 * time.Hour
	// periodLength is how long uses count as one: a scan reads a chunk in small reads.
	periodLength = time.Minute
	// logInterval is how often a complaint about chunks is repeated.
	logInterval = time.Minute
	// turnStripes is how many counters of removals there are: reads seldom share one.
	turnStripes = 4096
)

// Config is what a Cache is built from.
type Config struct {
	// Dir is the cache's own folder.
	Dir string
	// Quota bounds the bytes on disk; 0 is QuotaDefault. Less is used while the
	// disk has less than 5 % free, or less than 32 GiB of a large one.
	Quota int64
	// ScrubRate is what the background check reads a second; 0 is a default, < 0 off.
	ScrubRate int64
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("cache: %w: Config needs a Dir", content.ErrInvalid)
	}
	c.Quota = cmp.Or(c.Quota, QuotaDefault)
	if c.Quota < quotaMin {
		return c, fmt.Errorf("cache: %w: a quota of %d bytes; the least is %d", content.ErrInvalid, c.Quota, int64(quotaMin))
	}
	c.ScrubRate = cmp.Or(c.ScrubRate, scrubRateDefault)
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c, nil
}

// shape is that of a table for the quota in chunks of the default size, under loadMade.
func (c Config) shape() shape {
	chunks := int(c.Quota / content.ChunkSizeDefault)
	return shape{roundUp(int(c.Quota/slabSize)+1, 2), roundUp(chunks*16/loadMade, bucketSize)}
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// Cache holds chunks by their CIDs. Safe for concurrent use.
type Cache struct {
	cfg     Config
	started time.Time
	lock    io.Closer
	secret  secret
	names   names
	metrics metrics
	buffers scratch.Pool

	table   atomic.Pointer[table]
	turns   [turnStripes]atomic.Uint32 // raised by each removal of an object of the stripe
	elapsed atomic.Int64               // since started, as of the last tick
	files   atomic.Pointer[[]*os.File] // grown under mu
	full    atomic.Bool
	closed  atomic.Bool // set under mu
	evicted atomic.Uint64

	pinning sync.Mutex // held while a list of pins is changed, on disk too; before mu

	mu       sync.Mutex // guards what follows, and every change of the table but a reader's
	slabs    slabs
	census   [classes]census
	bytes    int64 // of the slots of objects
	hands    [classes][pinned]hand
	slabName []byte // a buffer
	pins     map[string]pin
	pinned   tally // of pins; changed with pinning too
	cramped  bool  // the table could not grow

	short, bad rate.Sometimes // what is logged of a full disk, and of bad chunks
}

// Open opens the cache in a folder, which is made if absent. Another process
// that has it open is ErrConflict. The caller closes it, by Run or Close.
func Open(cfg Config) (*Cache, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	lock, err := durable.Lock(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Dir, err)
	}
	c := &Cache{cfg: cfg, started: cfg.Now(), lock: lock, slabName: make([]byte, slabNameSize), pins: map[string]pin{},
		short: rate.Sometimes{Interval: logInterval}, bad: rate.Sometimes{Interval: logInterval}}
	c.metrics = newMetrics(c)
	c.files.Store(new([]*os.File))
	c.table.Store(emptyTable())
	c.names.file, err = os.OpenFile(filepath.Join(cfg.Dir, "names"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = c.load()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache %s: %w", cfg.Dir, err), c.release())
	}
	return c, nil
}

// Run checks objects in the background and gives space back when the disk runs
// short, until ctx ends; then it closes the cache.
func (c *Cache) Run(ctx context.Context) error {
	c.maintain(ctx)
	return c.Close()
}

// Close closes the files. Calls after it are ErrClosed, or find nothing.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return nil
	}
	t := c.table.Load()
	err := c.release()
	t.shut() // a reader that is not done may still change it: then it is made anew
	return err
}

// release lets go of all that Open took hold of. Called with mu, or by Open.
func (c *Cache) release() error {
	c.closed.Store(true)
	c.table.Store(emptyTable()) // the mapping goes when the last reader is done
	var errs []error
	for _, p := range c.pins {
		errs = append(errs, p.unmap())
	}
	for _, f := range *c.files.Load() {
		errs = append(errs, f.Close())
	}
	if c.names.file != nil {
		errs = append(errs, c.names.file.Close())
	}
	return errors.Join(append(errs, c.lock.Close())...)
}

// openFile makes sure that slabs of a file can be written to. Called with mu.
func (c *Cache) openFile(number int) error {
	files := *c.files.Load()
	for n := len(files); n <= number; n++ {
		f, err := os.OpenFile(filepath.Join(c.cfg.Dir, fmt.Sprintf("slabs-%04d", n)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		files = append(files[:n:n], f)
		c.files.Store(&files)
	}
	return nil
}

// extend makes a file at least that long.
func extend(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	return f.Truncate(size)
}

func (c *Cache) file(at place, cl class) (*os.File, int64, bool) {
	n, off := offset(at, cl)
	files := *c.files.Load()
	if n >= len(files) {
		return nil, 0, false
	}
	return files[n], off, true
}

// tick looks at the clock; reads are too many to do it each.
func (c *Cache) tick() { c.elapsed.Store(int64(c.cfg.Now().Sub(c.started))) }

func (c *Cache) period() uint64 { return uint64(c.elapsed.Load()/int64(periodLength)) % periods }

// day numbers the time in which a check of an object is good; never 0. It begins
// at another hour for each object, so that they don't all need a check at once.
func (c *Cache) day(tag uint64) uint64 {
	hour := int64(tag%(1<<16)) * int64(recheckAfter) >> 16
	return uint64((c.elapsed.Load()+hour)/int64(recheckAfter))%days + 1
}

// turn counts the removals of objects of the tag's stripe.
func (c *Cache) turn(tag uint64) *atomic.Uint32 { return &c.turns[tag%turnStripes] }

// Stats says how the cache stands.
type Stats struct {
	Chunks int64
	// Bytes of the slots of the chunks, and of the slabs they are in on disk.
	Bytes, Disk int64
	Quota       int64
	// Limit is what the chunks may take: less than the quota, where the disk has no room
	// for that beside what stays free for volumes and others.
	Limit int64
	// Pinned is how many chunks are pinned.
	Pinned int64
	// Full is true while chunks are passed on without being kept.
	Full bool
	// IndexBytes is the memory of the index.
	IndexBytes int64
}

// Stats returns the present figures.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Stats{
		Bytes: c.bytes, Disk: int64(c.slabs.live) * slabSize, Quota: c.cfg.Quota, Limit: max(c.limit(), 0),
		Full: c.full.Load(), IndexBytes: int64(len(c.table.Load().words)) * entrySize,
	}
	for _, n := range c.census {
		st.Chunks += int64(n[pinned] + n[onMain] + n[onProbation])
		st.Pinned += int64(n[pinned])
	}
	return st
}

// Evicted rises with each chunk that left: who keeps a list looks again then.
func (c *Cache) Evicted() uint64 { return c.evicted.Load() }

// Full is Stats().Full, without a lock.
func (c *Cache) Full() bool { return c.full.Load() }

// Collectors returns the metrics, for a registry of the caller's.
func (c *Cache) Collectors() []prometheus.Collector { return []prometheus.Collector{c.metrics.all} }

type metrics struct {
	all                                                 *prometheus.Registry
	hits, misses, corrupt, unkept, readErrors, scrubbed prometheus.Counter
}

func newMetrics(c *Cache) metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return to.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	gauge := func(name, help string, get func(Stats) int64) {
		to.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return float64(get(c.Stats())) })
	}
	to.NewCounterFunc(prometheus.CounterOpts(opts("removed_chunks_total", "Chunks evicted or dropped.")), func() float64 { return float64(c.Evicted()) })
	gauge("chunks", "Chunks in the cache.", func(s Stats) int64 { return s.Chunks })
	gauge("pinned_chunks", "Chunks that are pinned.", func(s Stats) int64 { return s.Pinned })
	gauge("chunk_bytes", "Bytes of the slots of the chunks.", func(s Stats) int64 { return s.Bytes })
	gauge("disk_bytes", "Bytes of the disk that the cache takes.", func(s Stats) int64 { return s.Disk })
	gauge("quota_bytes", "Bytes of the disk that the cache may take.", func(s Stats) int64 { return s.Quota })
	gauge("index_bytes", "Bytes of memory of the index.", func(s Stats) int64 { return s.IndexBytes })
	return metrics{
		all:        all,
		hits:       counter("hits_total", "Reads answered from the cache."),
		misses:     counter("misses_total", "Reads that found no chunk."),
		corrupt:    counter("corrupt_chunks_total", "Chunks that did not match their hash and were dropped."),
		unkept:     counter("unkept_chunks_total", "Chunks passed on without being kept, for want of room."),
		readErrors: counter("read_errors_total", "Chunks that the disk did not give and that were dropped."),
		scrubbed:   counter("scrubbed_bytes_total", "Bytes checked in the background."),
	}
}
