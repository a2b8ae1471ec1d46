package plan

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/zeebo/blake3"
)

// Rank orders members by rendezvous hashing: the first leads the run of that
// key. Every member with the same list computes the same order, and a join or
// leave moves only the runs of the one that came or went.
func Rank(key string, members []Peer) []Peer {
	type ranked struct {
		peer   Peer
		weight uint64
	}
	all := make([]ranked, len(members))
	for i, m := range members {
		all[i] = ranked{m, weight(key, m)}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.peer, b.peer))
	})
	out := make([]Peer, len(all))
	for i, r := range all {
		out[i] = r.peer
	}
	return out
}

// Lead returns the first of Rank, "" when there is nobody.
func Lead(key string, members []Peer) Peer {
	var lead Peer
	var most uint64
	for _, m := range members {
		if w := weight(key, m); lead == "" || w > most || w == most && m < lead {
			lead, most = m, w
		}
	}
	return lead
}

func weight(key string, m Peer) uint64 {
	b := make([]byte, 0, 128)
	b = append(append(append(b, key...), 0), m...)
	sum := blake3.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
