package fetch

import (
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
)

// Shown returns how many chunks of a root the bitmaps of other members show here.
func (f *Fetcher) Shown(root content.CID) map[peer.ID]uint64 {
	p := f.root(root).peers
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[peer.ID]uint64{}
	for _, t := range []*table{&p.near, &p.far} {
		for id, b := range t.held {
			out[id] = b.Len()
		}
	}
	return out
}

// Flights returns how many objects are on their way.
func (f *Fetcher) Flights() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.flights)
}
