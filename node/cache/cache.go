package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// QuotaDefault is how much a cache may take when nothing is said.
	QuotaDefault = 20 << 30
	// quotaMin has room for a slab of each class, and some to turn over.
	quotaMin = 16 * slabSize
	// reserveShare of a disk stays free for others, in percent: at less, the
	// cache gives space back.
	reserveShare = 5
	// recheckAfter is how long a check of an object is good, while it is used.
	recheckAfter = 24 * time.Hour
	// growTries bounds the ways tried to find one slot.
	growTries = 64
)

// Config is what a Cache is built from.
type Config struct {
	// Dir is the cache's own folder.
	Dir string
	// Quota bounds the bytes on disk; 0 is QuotaDefault. Less is used while the
	// disk has less than 5 % free.
	Quota int64
	// ScrubRate is how many bytes a second the background check reads; 0 is
	// scrubRateDefault, negative turns it off.
	ScrubRate int64
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("cache: Config needs a Dir")
	}
	if c.Quota == 0 {
		c.Quota = QuotaDefault
	}
	if c.Quota < quotaMin {
		return c, fmt.Errorf("cache: %w: a quota of %d bytes; the least is %d", content.ErrInvalid, c.Quota, int64(quotaMin))
	}
	if c.ScrubRate == 0 {
		c.ScrubRate = scrubRateDefault
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Cache holds chunks by their CIDs. Safe for concurrent use.
type Cache struct {
	cfg     Config
	started time.Time
	unlock  func() error
	table   atomic.Pointer[table]
	metrics metrics
	buffers sync.Pool // of *[]byte, slotMax long
	full    atomic.Bool
	evicted atomic.Uint64
	files   atomic.Pointer[[]*os.File] // grown under mu, read by anyone

	mu      sync.Mutex // guards what follows, and every change of the table's entries
	slabs   slabs
	count   int64  // objects
	bytes   int64  // of objects
	removed uint64 // entries that are marked so
	hand    uint64 // of the eviction clock
	gen     uint64 // of the last writing of a slot
	pins    map[string][]content.CID
	closed  bool
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
	unlock, err := lock(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Dir, err)
	}
	c := &Cache{cfg: cfg, started: cfg.Now(), unlock: unlock, metrics: newMetrics()}
	c.buffers.New = func() any { b := make([]byte, slotMax); return &b }
	c.files.Store(new([]*os.File))
	c.table.Store(emptyTable())
	if err := c.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("cache %s: %w", cfg.Dir, err), c.Close())
	}
	return c, nil
}

// load maps the index, or starts an empty one when there is none that can be
// used, and takes stock of the slots.
func (c *Cache) load() error {
	path := filepath.Join(c.cfg.Dir, "index")
	t, err := openTable(path)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.cfg.Log.Warn("the cache starts empty", "why", err)
		}
		if t, err = createTable(path, c.cfg.tableSize(), [2]uint64{rand.Uint64(), rand.Uint64()}); err != nil {
			return err
		}
	}
	c.table.Store(t)
	dropped := 0
	for i := range t.n {
		h := t.word0(i)
		if h == wordRemoved {
			c.removed++
		}
		if h <= wordRemoved {
			continue
		}
		p := t.place(i).with(dayShift, dayBits, 0).with(pinShift, 1, 0)
		if _, _, ok := t.find(h); !ok || !c.slabs.claim(p.slab(), p.slot(), classOf(p.length())) {
			t.remove(i)
			dropped++
			continue
		}
		t.set(i, h, p)
		c.count++
		c.bytes += int64(p.length())
	}
	c.slabs.collect()
	if dropped > 0 {
		c.cfg.Log.Warn("the cache's index contradicted itself, as after a loss of power; those entries are dropped", "entries", dropped)
	}
	c.loadPins()
	if n := len(c.slabs.all); n > 0 {
		return c.openFile((n - 1) / slabsPerFile)
	}
	return nil
}

// tableSize is room for the quota in chunks of the default size, under loadMax.
func (c Config) tableSize() uint64 {
	return uint64(c.Quota/content.ChunkSizeDefault)*16/loadMax + 4096
}

// Close closes the files. Calls after it find nothing.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.table.Store(emptyTable()) // the mapping goes when the last reader is done
	var errs []error
	for _, f := range *c.files.Load() {
		errs = append(errs, f.Close())
	}
	return errors.Join(append(errs, c.unlock())...)
}

// Run checks objects in the background and gives space back when the disk runs
// short, until ctx ends; then it closes the cache.
func (c *Cache) Run(ctx context.Context) error {
	c.maintain(ctx)
	return c.Close()
}

// Has reports whether the chunk is here; a later read may find it bad.
func (c *Cache) Has(id content.CID) bool {
	t := c.table.Load()
	_, _, ok := t.find(t.hash(id))
	return ok
}

// ReadAt fills p with the bytes of the chunk from off. ErrNotFound means that it
// is not here, ErrCorrupt that it was and has been dropped: both mean to fetch
// it. It allocates nothing and takes no lock once the chunk has been checked.
func (c *Cache) ReadAt(id content.CID, p []byte, off int) error {
	t := c.table.Load()
	h := t.hash(id)
	i, pl, ok := t.find(h)
	switch {
	case !ok:
		c.metrics.misses.Inc()
		return content.ErrNotFound
	case off < 0 || off+len(p) > pl.length():
		return fmt.Errorf("cache: %w: bytes %d to %d of a chunk of %d", content.ErrInvalid, off, off+len(p), pl.length())
	case pl.day() != c.day():
		return c.readChecked(id, p, off)
	case !c.read(h, pl, p, off) || !c.still(t, i, h, pl):
		c.metrics.misses.Inc()
		return content.ErrNotFound
	}
	if pl.freq() < freqMax {
		t.swap(i, pl, pl.with(freqShift, freqBits, pl.freq()+1))
	}
	c.metrics.hits.Inc()
	return nil
}

// readChecked is ReadAt for a chunk whose last check was too long ago.
func (c *Cache) readChecked(id content.CID, p []byte, off int) error {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	v, err := c.Get(id, *buf)
	if err != nil {
		return err
	}
	copy(p, v.Bytes()[off:])
	return nil
}

// Get returns the whole chunk, hashed again: what leaves for a peer. buf is used
// for the bytes if it is large enough. Errors are those of ReadAt.
func (c *Cache) Get(id content.CID, buf []byte) (content.Verified, error) {
	t := c.table.Load()
	h := t.hash(id)
	i, pl, ok := t.find(h)
	if !ok {
		c.metrics.misses.Inc()
		return content.Verified{}, content.ErrNotFound
	}
	if cap(buf) < pl.length() {
		buf = make([]byte, pl.length())
	}
	buf = buf[:pl.length()]
	if !c.read(h, pl, buf, 0) || !c.still(t, i, h, pl) {
		c.metrics.misses.Inc()
		return content.Verified{}, content.ErrNotFound
	}
	v, err := content.Verify(id, buf)
	if err != nil {
		c.drop(h, pl)
		c.metrics.corrupt.Inc()
		c.cfg.Log.Warn("a chunk in the cache was bad and is dropped", "cid", id)
		return content.Verified{}, err
	}
	t.swap(i, pl, pl.with(dayShift, dayBits, c.day()).with(freqShift, freqBits, min(pl.freq()+1, freqMax)))
	c.metrics.hits.Inc()
	return v, nil
}

// day numbers the periods after which objects are checked again; never 0.
func (c *Cache) day() uint64 {
	return uint64(c.cfg.Now().Sub(c.started)/recheckAfter)%daysMax + 1
}

// read reads bytes of a slot. A chunk that the disk fails to give is dropped: it
// is absent, and may be kept anew elsewhere.
func (c *Cache) read(h uint64, pl place, p []byte, off int) bool {
	file, at := offset(pl, classOf(pl.length()))
	if files := *c.files.Load(); file < len(files) {
		if n, _ := files[file].ReadAt(p, at+int64(off)); n == len(p) {
			return true
		}
	}
	c.metrics.readErrors.Inc()
	c.drop(h, pl)
	return false
}

// still reports whether the entry is what it was before its slot was read.
func (c *Cache) still(t *table, i, h uint64, pl place) bool {
	return t.word0(i) == h && t.place(i).where() == pl.where() && c.table.Load() == t
}

// Put keeps a chunk. ErrNoSpace means that there was no room: the caller goes on
// without. A chunk that is here already is success. The bytes are copied.
func (c *Cache) Put(v content.Verified) error {
	length := len(v.Bytes())
	if length == 0 || length > slotMax {
		return fmt.Errorf("cache: %w: a chunk of %d bytes", content.ErrInvalid, length)
	}
	if c.Has(v.CID()) {
		return nil
	}
	pl, err := c.reserve(length)
	if err == nil {
		if err = c.write(pl, v.Bytes()); err != nil {
			c.cancel(pl)
		}
	}
	if err != nil {
		c.metrics.dropped.Inc()
		if !c.full.Swap(true) {
			c.cfg.Log.Warn("the cache is full: chunks are passed on without being kept", "err", err)
		}
		return fmt.Errorf("cache: %w: %w", content.ErrNoSpace, err)
	}
	c.full.Store(false)
	c.commit(v.CID(), pl)
	return nil
}

func (c *Cache) write(pl place, b []byte) error {
	file, at := offset(pl, classOf(pl.length()))
	_, err := (*c.files.Load())[file].WriteAt(b, at)
	return err
}

// commit makes a written slot findable, or gives it back if another Put was
// faster.
func (c *Cache) commit(id content.CID, pl place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	t := c.table.Load()
	h := t.hash(id)
	if _, _, ok := t.find(h); ok {
		c.giveSlot(pl)
		return
	}
	if t = c.room(t); t == nil {
		c.giveSlot(pl)
		return
	}
	c.gen++
	t.insert(h, pl.with(genShift, genBits, c.gen%(1<<genBits)).with(dayShift, dayBits, c.day()).with(pinShift, 1, c.pinBit(id)))
	c.count++
	c.bytes += int64(pl.length())
}

func (c *Cache) cancel(pl place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.giveSlot(pl)
	}
}

// giveSlot is called with mu.
func (c *Cache) giveSlot(pl place) {
	if c.slabs.give(pl.slab(), pl.slot()) && c.slabs.live > 1 && c.overLimit() {
		c.returnSlab(pl.slab())
	}
}

// drop removes an entry if it still says what the caller saw.
func (c *Cache) drop(h uint64, pl place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table.Load()
	if i, now, ok := t.find(h); ok && now.where() == pl.where() {
		c.evict(t, i, now)
	}
}

// evict is called with mu.
func (c *Cache) evict(t *table, i uint64, pl place) {
	t.remove(i)
	c.removed++
	c.count--
	c.bytes -= int64(pl.length())
	c.evicted.Add(1)
	c.giveSlot(pl)
}

// Stats says how the cache stands.
type Stats struct {
	Chunks int64
	// Bytes of the chunks, and of the slabs that hold them on disk.
	Bytes, Disk int64
	Quota       int64
	// Full is true while chunks are passed on without being kept.
	Full bool
	// Evicted rises with each chunk that left: who keeps a list of what is here
	// looks again when it has changed.
	Evicted uint64
	// IndexBytes is the memory of the index.
	IndexBytes int64
}

// Stats returns the present figures.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Chunks: c.count, Bytes: c.bytes, Disk: int64(c.slabs.live) * slabSize, Quota: c.cfg.Quota,
		Full: c.full.Load(), Evicted: c.evicted.Load(), IndexBytes: int64(len(c.table.Load().raw)),
	}
}

// Evicted is Stats().Evicted, without a lock.
func (c *Cache) Evicted() uint64 { return c.evicted.Load() }

// Collectors returns the metrics, for a registry of the caller's.
func (c *Cache) Collectors() []prometheus.Collector { return c.metrics.all(c) }
