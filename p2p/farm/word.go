package farm

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// word is what a member says of itself in gossip, signed with the key that its name,
// the peer ID, is made of: so nobody else can say that a member is at another address.
// Whether the member is of this farm is its certificate's to say.
//
// In gossip a word is a member's metadata. All integers are big-endian.
//
//	offset  size  what
//	0       2     magic "gf"
//	2       1     version, 4
//	3       8     number: milliseconds since 1970 at the member's start, or more
//	11      64    signature over farm, 0, gossip HOST:PORT, 0, all of this but the signature
//	75      …     addresses to the end: one byte of length, then as many of a multiaddr
type word struct {
	// address is the gossip HOST:PORT that the word was said for.
	address string
	// number rises with each start of the member; the highest is its word.
	number uint64
	addrs  []ma.Multiaddr
	raw    string // as it travels
}

const (
	wordMagic   = "gf"
	wordVersion = 4
	wordHeader  = wordSigned + 64
	// wordSigned is where the signature begins.
	wordSigned = 11
	// wordMax is what gossip lets a member say of itself, in bytes.
	wordMax = memberlist.MetaMaxSize
	// wordAddrMax is what its byte of length can say.
	wordAddrMax = 255
)

// signedPart is what a word's signature is over.
func signedPart(farm, address string, raw []byte) []byte {
	out := append([]byte(farm+"\x00"+address+"\x00"), raw[:wordSigned]...)
	return append(out, raw[wordHeader:]...)
}

// sign gives the word its raw form. It drops the last addresses when all of them are
// too many; one that leaves no room for itself is content.ErrInvalid.
func (w word) sign(farm string, signer trust.Signer) (word, error) {
	out := append([]byte(wordMagic), wordVersion)
	out = binary.BigEndian.AppendUint64(out, w.number)
	out = append(out, make([]byte, wordHeader-wordSigned)...)
	for i, a := range w.addrs {
		b := a.Bytes()
		if room := min(wordMax-len(out)-1, wordAddrMax); len(b) > room {
			if i == 0 || len(b) > wordAddrMax {
				return word{}, fmt.Errorf("address %.80q: %w: gossip takes %d bytes", a, content.ErrInvalid, room)
			}
			break
		}
		out = append(append(out, byte(len(b))), b...)
	}
	copy(out[wordSigned:], signer.Attest(trust.PurposeGossip, signedPart(farm, w.address, out)))
	w.raw = string(out)
	return w, nil
}

// readWord checks and reads the word of a member that is said to be at a gossip
// address. What is no word is content.ErrCorrupt, one that the member has not signed
// for that farm and address content.ErrForbidden.
func readWord(farm string, id peer.ID, address string, raw []byte) (word, error) {
	key, err := identity.KeyOf(id)
	if err != nil {
		return word{}, err
	}
	if len(raw) < wordHeader || len(raw) > wordMax || string(raw[:2]) != wordMagic || raw[2] != wordVersion {
		return word{}, fmt.Errorf("member %s: %w: what it says of itself", id, content.ErrCorrupt)
	}
	if !key.Attested(trust.PurposeGossip, signedPart(farm, address, raw), raw[wordSigned:wordHeader]) {
		return word{}, fmt.Errorf("member %s at %s: %w: it has not said so itself", id, address, content.ErrForbidden)
	}
	w := word{address: address, number: binary.BigEndian.Uint64(raw[3:]), raw: string(raw)}
	for rest := raw[wordHeader:]; len(rest) > 0; {
		n := 1 + int(rest[0])
		a, err := ma.NewMultiaddrBytes(rest[1:min(n, len(rest))])
		if err != nil || n > len(rest) {
			return word{}, fmt.Errorf("member %s: %w: its addresses", id, content.ErrCorrupt)
		}
		w.addrs, rest = append(w.addrs, a), rest[n:]
	}
	return w, nil
}

// parseName reads a name in gossip: a peer ID in its usual form, and nothing else.
func parseName(name string) (peer.ID, error) {
	id, err := peer.Decode(name)
	if err != nil || id.String() != name {
		return "", fmt.Errorf("name %.80q: %w: want a peer ID", name, content.ErrInvalid)
	}
	return id, nil
}
