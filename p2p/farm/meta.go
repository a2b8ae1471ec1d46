package farm

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/hashicorp/memberlist"

	"github.com/grangemesh/grange/origin/content"
)

// What a member says of itself in gossip. All integers are big-endian.
//
//	offset  size  what
//	0       2     magic "gf"
//	2       1     version, 1
//	3       4     speed of its link in Mbit/s; 0 is unknown
//	7       …     addresses to the end: one byte of length, then as many of text
//
// Addresses are without their end, the peer ID, which is the member's name in
// gossip.
const (
	metaMagic   = "gf"
	metaVersion = 1
	metaHeader  = 7
	// metaMax is what gossip lets a member say of itself, in bytes.
	metaMax = memberlist.MetaMaxSize
	// metaAddrMax is what its byte of length can say.
	metaAddrMax = 255
)

// encodeMeta drops the last addresses when all of them are too many; one that
// leaves no room for itself is content.ErrInvalid.
func encodeMeta(node string, addrs []string, linkMbits uint32) ([]byte, error) {
	out := append([]byte(metaMagic), metaVersion)
	out = binary.BigEndian.AppendUint32(out, linkMbits)
	for i, a := range addrs {
		short := strings.TrimSuffix(a, "/p2p/"+node)
		if short == "" || len(short) > metaAddrMax {
			return nil, fmt.Errorf("address %.80q: %w: gossip takes 1 to %d bytes", a, content.ErrInvalid, metaAddrMax)
		}
		if len(out)+1+len(short) > metaMax {
			if i == 0 {
				return nil, fmt.Errorf("address %.80q: %w: gossip takes %d bytes of a member", a, content.ErrInvalid, metaMax)
			}
			break
		}
		out = append(append(out, byte(len(short))), short...)
	}
	return out, nil
}

// decodeMeta reads what encodeMeta wrote for a node; anything else is
// content.ErrCorrupt.
func decodeMeta(node string, b []byte) (addrs []string, linkMbits uint32, err error) {
	if len(b) < metaHeader || len(b) > metaMax || string(b[:2]) != metaMagic || b[2] != metaVersion {
		return nil, 0, fmt.Errorf("member %.80q: %w: what it says of itself", node, content.ErrCorrupt)
	}
	linkMbits = binary.BigEndian.Uint32(b[3:])
	for rest := b[metaHeader:]; len(rest) > 0; {
		n := 1 + int(rest[0])
		if n == 1 || n > len(rest) {
			return nil, 0, fmt.Errorf("member %.80q: %w: its addresses", node, content.ErrCorrupt)
		}
		addrs, rest = append(addrs, string(rest[1:n])+"/p2p/"+node), rest[n:]
	}
	return addrs, linkMbits, nil
}
