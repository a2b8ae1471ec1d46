package fetch

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// Shown returns how many chunks of a root the bitmaps of other members show here.
func (f *Fetcher) Shown(root content.CID) map[peer.ID]uint64 {
	out := map[peer.ID]uint64{}
	mind := f.best(root, "", func(*rootState) bool { return true }).peers.Mind
	f.Think(func(*plan.Member) {
		for id, n := range mind.Counts() {
			out[peer.ID(id)] = n
		}
	})
	return out
}

// ShownBytes returns how much memory the bitmaps of other members take.
func (f *Fetcher) ShownBytes() (n int) {
	f.Think(func(m *plan.Member) { n = m.Bytes() })
	return n
}

// Locate says where a chunk lies at the origin.
func (f *Fetcher) Locate(ctx context.Context, root content.CID, index uint64) (pack.Location, error) {
	o, _, err := f.chunk(ctx, f.best(root, "", func(*rootState) bool { return true }), index, request{priority: exchange.PriorityGuest})
	return o.At, err
}

// RunKey is what a run's lead is chosen by.
func RunKey(r pack.Run) string { return object.RunKey(r) }

// Flights returns how many objects are on their way.
func (f *Fetcher) Flights() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.objects {
		for range o.Flights {
			n++
		}
	}
	return n
}

// Failed has a member passed over.
func (f *Fetcher) Failed(id peer.ID) { f.unmet(id, content.ErrUnavailable) }

// Lied is told that a member lied.
func (f *Fetcher) Lied(id peer.ID) { f.lied(id, "a lie") }
