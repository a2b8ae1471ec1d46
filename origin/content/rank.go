package content

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// Weight is how high each of some names ranks for a key, by rendezvous hashing: whoever
// knows the same names ranks them alike, and one that comes or goes moves no other.
func Weight(key string, names ...string) uint64 {
	b := append(make([]byte, 0, 256), key...)
	for _, name := range names {
		b = append(append(b, 0), name...)
	}
	sum := blake3.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
