package plan

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/zeebo/blake3"
)

const (
	// keptMax bounds the places that a ranking keeps, to 2 MiB: the orders of a thousand
	// runs, in a farm of a thousand.
	keptMax = 1 << 20
	// orderSize is how many places the rest of an order takes as much memory as.
	orderSize = 64
)

// ranking is members in the order in which they lead, by key. Orders are kept until the
// members change.
type ranking struct {
	members []Peer
	most    int                 // places of an order; 0 for all
	orders  map[string][]uint16 // places in members
	kept    int
}

// set takes the members, if they are others than before.
func (r *ranking) set(members []Peer) {
	if slices.Equal(r.members, members) {
		return
	}
	r.members = slices.Clone(members[:min(len(members), 1<<16)])
	r.forget()
}

func (r *ranking) forget() {
	clear(r.orders)
	r.kept = 0
}

// order returns the places of members, the one that leads first.
func (r *ranking) order(key string) []uint16 {
	if o, ok := r.orders[key]; ok {
		return o
	}
	weights := make([]uint64, len(r.members))
	out := make([]uint16, len(r.members))
	for i, p := range r.members {
		weights[i], out[i] = weight(key, p), uint16(i)
	}
	slices.SortFunc(out, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(weights[b], weights[a]), cmpPeers(r.members[a], r.members[b]))
	})
	if r.most > 0 {
		out = slices.Clone(out[:min(len(out), r.most)])
	}
	if r.kept+len(out)+orderSize > keptMax {
		r.forget()
	}
	if r.orders == nil {
		r.orders = map[string][]uint16{}
	}
	r.orders[key] = out
	r.kept += len(out) + orderSize
	return out
}

// Rank orders members by rendezvous hashing: the first leads the run of that
// key. Every member with the same list computes the same order, and a join or
// leave moves only the runs of the one that came or went.
func Rank(key string, members []Peer) []Peer {
	r := ranking{members: members}
	out := make([]Peer, len(members))
	for i, place := range r.order(key) {
		out[i] = members[place]
	}
	return out
}

func cmpPeers(a, b Peer) int { return cmp.Compare(a, b) }

func weight(key string, m Peer) uint64 {
	b := make([]byte, 0, 160)
	b = append(append(append(b, key...), 0), m...)
	sum := blake3.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
