package holders

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// volumesMax bounds the volumes that a store has something of: each has a file open.
	volumesMax = 2048
	// QuotaDefault is what a store takes of a disk when nothing is said, in bytes: 256
	// volumes that are folded at 256 MiB.
	QuotaDefault = 64 << 30
)

// StoreConfig is what a Store is built from.
type StoreConfig struct {
	// Dir is the store's own.
	Dir string
	// Farm is this node's: members of others get nothing, and bring nothing.
	Farm string
	// Quota bounds what is held, in bytes; QuotaDefault when 0.
	Quota int64
	Log   *slog.Logger

	// sync makes a file durable, and fail is asked before each step: for tests, which
	// have storage that forgets, and crashes.
	sync func(*os.File) error
	fail func(step) error
}

// step is a moment at which a holder may crash.
type step string

// The steps. A test crashes at each.
const (
	stepPromised step = "before a promise is written"
	stepBegun    step = "a segment's file is made, and has no bytes"
	stepWritten  step = "bytes are written, and not durable"
	stepSynced   step = "bytes are durable, and a new segment has not its own name"
	stepNamed    step = "it has, which is not durable"
	stepBased    step = "a new base is written, and what it has is there"
	stepCut      step = "one of several segments is cut"
	stepDropped  step = "a volume that is dropped has no note, and all of its segments"
)

// Store keeps what this node holds for the volumes of other members. Safe for concurrent
// use. It implements exchange.Holder.
type Store struct {
	cfg    StoreConfig
	opened time.Time
	used   atomic.Int64

	mu      sync.Mutex // guards volumes; a held's is never taken under it
	volumes map[content.VolumeID]*held
}

var _ exchange.Holder = (*Store)(nil)

// Open opens the folder of a store, which it makes if need be. What was held stays held,
// and is looked at when it is asked for. The caller closes it.
func Open(cfg StoreConfig) (*Store, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Quota = cmp.Or(cfg.Quota, QuotaDefault)
	if cfg.sync == nil {
		cfg.sync = (*os.File).Sync
	}
	if cfg.fail == nil {
		cfg.fail = func(step) error { return nil }
	}
	s := &Store{cfg: cfg, opened: time.Now(), volumes: map[content.VolumeID]*held{}}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("holders: %w", err)
	}
	folders, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("holders: %w", err)
	}
	for _, f := range folders {
		if strings.HasSuffix(f.Name(), goneSuffix) { // a crash has left it
			if err := os.RemoveAll(filepath.Join(cfg.Dir, f.Name())); err != nil {
				return nil, fmt.Errorf("holders: %w", err)
			}
			continue
		}
		raw, err := hex.DecodeString(f.Name())
		if err != nil || len(raw) != len(content.VolumeID{}) {
			continue
		}
		id := content.VolumeID(raw)
		s.volumes[id] = &held{store: s, id: id, dir: filepath.Join(cfg.Dir, f.Name())}
		s.used.Add(sizeOf(s.volumes[id].dir))
	}
	return s, nil
}

// sizeOf is what the segments of a folder have, in bytes.
func sizeOf(dir string) (n int64) {
	files, _ := os.ReadDir(dir) // what can't be read is found when it is asked for
	for _, f := range files {
		if info, err := f.Info(); err == nil && f.Name() != noteName {
			n += info.Size()
		}
	}
	return n
}

// Close closes the files. Requests after it fail with ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	all := s.volumes
	s.volumes = nil
	s.mu.Unlock()
	var errs []error
	for _, h := range all {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}

// Take implements exchange.Holder.
func (s *Store) Take(from exchange.Peer, m wire.Message) func(context.Context) (*wire.Held, []byte, error) {
	if !from.Identity.Role.IsMember() || from.Identity.Farm != s.cfg.Farm {
		return refuse(fmt.Errorf("%w: journals are held for members of the same farm", content.ErrForbidden))
	}
	switch m := m.(type) {
	case wire.Promise:
		return func(context.Context) (*wire.Held, []byte, error) { return s.promise(from, m) }
	case wire.Extend:
		h, err := s.of(m.Claim)
		if err != nil {
			return refuse(err)
		}
		return h.extend(m)
	case wire.Read:
		return s.with(m.Claim, func(h *held) (*wire.Held, []byte, error) {
			b, err := h.read(m)
			return nil, b, err
		})
	case wire.Cut:
		return s.with(m.Claim, func(h *held) (*wire.Held, []byte, error) { return nil, nil, h.cut(m) })
	case wire.Drop:
		return s.with(m.Claim, func(h *held) (*wire.Held, []byte, error) { return nil, nil, h.drop(m) })
	case wire.Status:
		return s.with(m.Claim, func(h *held) (*wire.Held, []byte, error) { return h.status() })
	}
	return refuse(fmt.Errorf("%w: %T", content.ErrInvalid, m))
}

func refuse(err error) func(context.Context) (*wire.Held, []byte, error) {
	return func(context.Context) (*wire.Held, []byte, error) { return nil, nil, err }
}

func (s *Store) with(c wire.Claim, do func(*held) (*wire.Held, []byte, error)) func(context.Context) (*wire.Held, []byte, error) {
	return func(context.Context) (*wire.Held, []byte, error) {
		h, err := s.of(c)
		if err != nil {
			return nil, nil, err
		}
		return do(h)
	}
}

// of returns what is held of a volume.
func (s *Store) of(c wire.Claim) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes == nil {
		return nil, content.ErrClosed
	}
	if h := s.volumes[c.Volume]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w: nothing of volume %s is held here", content.ErrNotFound, c.Volume)
}

// promise takes a claim.
func (s *Store) promise(from exchange.Peer, m wire.Promise) (*wire.Held, []byte, error) {
	h, err := s.of(m.Claim)
	if errors.Is(err, content.ErrNotFound) && m.Begin {
		h, err = s.begin(m.Claim.Volume)
	}
	if err != nil {
		return nil, nil, err
	}
	return h.promise(from.Identity.Key, m)
}

// begin makes room for a volume of which nothing is held; its folder comes with the note.
func (s *Store) begin(id content.VolumeID) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.volumes == nil:
		return nil, content.ErrClosed
	case s.volumes[id] != nil:
		return s.volumes[id], nil
	case len(s.volumes) >= volumesMax, s.used.Load() >= s.cfg.Quota:
		return nil, fmt.Errorf("%w: %d bytes of %d volumes are held here", content.ErrNoSpace, s.used.Load(), len(s.volumes))
	}
	h := &held{store: s, id: id, dir: filepath.Join(s.cfg.Dir, id.String())}
	s.volumes[id] = h
	return h, nil
}

// forget ends what is held of a volume: its folder is gone.
func (s *Store) forget(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes[h.id] == h {
		delete(s.volumes, h.id)
	}
}

// sweepAfter is how long what is held has to be without a message before its record is
// looked at: longer than a new holder takes to be filled, before its record names it.
const sweepAfter = time.Hour

// damagedAfter is how long what is held stays whose note is damaged, so that nobody knows
// which record to ask: whoever is named with it has long been asked by its writer, and begun
// anew, and people who save a disk had the time.
const damagedAfter = 30 * 24 * time.Hour

// Said is what the record of a volume's name says, to a holder of it.
type Said struct {
	// Version is the record's; ID is none where it says that the name was freed.
	Version uint64
	ID      content.VolumeID
	Epoch   uint64
	Base    content.Position // the record has everything up to there
	Holder  bool             // names this node as one
}

// frees reports whether nobody can need any more what is held of a volume for a claim. A volume
// whose name was freed, or given to another since, is no more; epochs of a name begin behind the
// versions that its record had before, so that an old one is not taken for that. Who is taking a
// volume over may be about to name this node, until the record has an epoch as late.
func (s Said) frees(id content.VolumeID, c wire.Claim) bool {
	if s.ID != id {
		return s.Version >= c.Epoch
	}
	return !s.Holder && s.Epoch >= c.Epoch
}

// Sweep lets go of what records say is not needed any more, of volumes that nobody has spoken of for a while:
// record looks one up, by its name, for sure. An error keeps what is held. It returns how many volumes went.
func (s *Store) Sweep(ctx context.Context, now time.Time, record func(context.Context, string) (Said, error)) (went int) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.volumes))
	s.mu.Unlock()
	for _, h := range all {
		n, at, err := h.look()
		if errors.Is(err, content.ErrCorrupt) && now.Sub(at) >= damagedAfter && h.sweep(n.claim, at) == nil {
			went++
		}
		if err != nil || now.Sub(at) < sweepAfter || ctx.Err() != nil {
			continue
		}
		said, err := record(ctx, n.name)
		switch {
		case err != nil:
		case said.frees(h.id, n.claim):
			if err := h.sweep(n.claim, at); err == nil {
				went++
			}
		case said.ID == h.id && said.Epoch >= n.claim.Epoch && said.Base.Seq > n.base.Seq:
			if err := h.drop(wire.Drop{Claim: n.claim, Base: said.Base}); err != nil {
				s.cfg.Log.Warn("what a volume's record has can't be dropped", "volume", n.name, "err", err)
			}
		}
	}
	return went
}

// absent reports whether an error says that a file is not there.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
