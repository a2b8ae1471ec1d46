package farm

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// keySpread is how long a new key is only understood before this member speaks it:
	// by then the others have it, so that nobody loses sight of the farm. Secrets are
	// everywhere within a minute; who is later than this is alone until it has the key.
	keySpread = time.Minute
	// keyGrace is how long the key before is understood after that, for whose keySpread
	// began later. It is short: somebody has the key who should not, and is not listed.
	keyGrace = 10 * time.Minute
)

// agedKey is a key of the gossip, and since when this member has it.
type agedKey struct {
	key   [32]byte
	since time.Time
}

// use says which of the keys, the oldest first, is spoken now, which is the oldest
// that is still understood, and when that changes.
func use(keys []agedKey, now time.Time) (spoken, oldest int, next time.Time) {
	soonest := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i, k := range keys[1:] {
		from := k.since.Add(keySpread)
		alone := from.Add(keyGrace)
		if !now.Before(from) {
			spoken = i + 1
		}
		if !now.Before(alone) {
			oldest = i + 1
		}
		soonest(from)
		soonest(alone)
	}
	return spoken, oldest, next
}

// Rotate gives the farm a new key: understood at once, spoken after keySpread; keyGrace
// later the one before is understood no more. The newest key again changes nothing.
func (f *Farm) Rotate(key [32]byte) error {
	if key == ([32]byte{}) {
		return fmt.Errorf("farm %s: %w: a gossip key of zeros", f.name, content.ErrInvalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[len(f.keys)-1].key == key {
		return nil
	}
	if err := f.ring.AddKey(key[:]); err != nil {
		return fmt.Errorf("farm %s: %w", f.name, err)
	}
	f.keys = append(f.keys, agedKey{key, f.cfg.Now()})
	select {
	case f.rotated <- struct{}{}:
	default:
	}
	return nil
}

// keepKeys speaks new keys and forgets old ones when it is time, until ctx ends.
func (f *Farm) keepKeys(ctx context.Context) {
	for {
		var turn <-chan time.Time
		if next := f.turnKeys(); !next.IsZero() {
			turn = time.After(next.Sub(f.cfg.Now()))
		}
		select {
		case <-turn:
		case <-f.rotated:
		case <-ctx.Done():
			return
		}
	}
}

// turnKeys has the ring be as the keys' ages say, and returns when to look again.
func (f *Farm) turnKeys() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	spoken, oldest, next := use(f.keys, f.cfg.Now())
	if err := arrange(f.ring, f.keys, spoken, oldest); err != nil {
		f.cfg.Log.Error("gossip: the new key can't be used", "err", err)
		return time.Time{}
	}
	f.keys = f.keys[oldest:]
	return next
}

// arrange puts the spoken key first in the ring, and removes those before the oldest.
// The others stand behind, the newest first: memberlist reads a ring while it is
// changed, which only the removal of the last key bears.
func arrange(ring *memberlist.Keyring, keys []agedKey, spoken, oldest int) error {
	for _, k := range append(keys[:len(keys):len(keys)], keys[spoken]) {
		if err := ring.UseKey(k.key[:]); err != nil {
			return err
		}
	}
	for _, k := range keys[:oldest] {
		if err := ring.RemoveKey(k.key[:]); err != nil {
			return err
		}
	}
	return nil
}
