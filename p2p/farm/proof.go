package farm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// How members are proved. A member's word travels as its metadata. Its certificate
// has no room there: who learns it passes it on, a packet each, as gossip does with
// all news; members that join each other exchange all words and certificates that they
// know, and what was missed all the same is asked for by joining the member again.
const (
	// packetMax is the longest certificate that is passed on by itself: what a packet has
	// room for, beside label and encryption. A longer one travels with the exchanges.
	packetMax = 1300
	// newsMax is how many certificates out of one exchange are passed on. More are no
	// news to the farm, but the farm's to a newcomer.
	newsMax = 64
)

// proof is how a member's word and certificate travel; each may be absent.
type proof struct {
	_       struct{} `cbor:",toarray"`
	Node    string
	Address string
	Word    []byte
	Chain   []byte
}

// verify checks that a chain makes a peer a member of this farm; else it is
// content.ErrForbidden, or content.ErrCorrupt when it is none.
func (f *Farm) verify(id peer.ID, chain trust.Chain) (trust.Identity, error) {
	who, err := f.cfg.Verifier.Recognize(chain, f.cfg.Now())
	if err != nil {
		return trust.Identity{}, err
	}
	if identity.PeerID(who.Key) != id {
		return trust.Identity{}, fmt.Errorf("certificate of %s: %w: it is not of member %s", who.Key, content.ErrForbidden, id)
	}
	if !who.Role.IsMember() || who.Farm != f.name {
		return trust.Identity{}, fmt.Errorf("member %s: %w: it is a %s of farm %q, not a member of farm %s", id, content.ErrForbidden, who.Role, who.Farm, f.name)
	}
	return who, nil
}

// believe takes of a proof what holds. It reports whether it brought a certificate
// that was not known, and whether the members have changed.
func (f *Farm) believe(p proof) (news, changed bool, err error) {
	id, err := parseName(p.Node)
	if err != nil {
		return false, false, err
	}
	var stale error // which says nothing against the certificate
	if len(p.Word) > 0 {
		changed, stale = f.hear(id, p.Address, string(p.Word))
	}
	if id == f.self.ID || len(p.Chain) == 0 || f.certified(id, string(p.Chain)) {
		return false, changed, stale
	}
	c := certificate{sealed: string(p.Chain), good: true}
	if err = f.codec.Unmarshal(p.Chain, &c.chain); err == nil {
		c.who, err = f.verify(id, c.chain)
	}
	if err != nil {
		return false, changed, errors.Join(stale, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	listed, err := f.roster.certify(id, c)
	return err == nil, changed || listed, errors.Join(stale, err)
}

// certified reports whether that certificate is known already.
func (f *Farm) certified(id peer.ID, sealed string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.roster[id]
	return k != nil && k.cert.sealed == sealed
}

// hear takes a word that a member is said to have given at an address. Its own, of a
// clock that went back since, has this member raise its number.
func (f *Farm) hear(id peer.ID, address, raw string) (changed bool, err error) {
	f.mu.Lock()
	k := f.roster[id]
	same := k != nil && k.word.raw == raw && k.word.address == address
	f.mu.Unlock()
	if same {
		return false, nil
	}
	w, err := readWord(f.name, id, address, []byte(raw))
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if id != f.self.ID {
		return f.roster.hear(id, w)
	}
	if w.number >= f.word.number && w.raw != f.word.raw {
		select {
		case f.outdone <- w.number:
		default: // one is enough to make it speak again
		}
	}
	return false, nil
}

// say signs this member's word anew, of that number at least, and has gossip spread it.
func (f *Farm) say(number uint64) error {
	address := f.Address()
	f.mu.Lock()
	w := word{address: address, number: max(number, f.word.number+1, uint64(f.cfg.Now().UnixMilli())), addrs: f.self.Addrs}
	w, err := w.sign(f.name, f.cfg.Signer)
	if err == nil {
		f.word, f.self.Address = w, address
		f.publish()
	}
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("farm %s: %w", f.name, err)
	}
	return f.list.Load().UpdateNode(sayTimeout)
}

// proofs is what this member tells another: its own proof, and to one that joins those
// of all members, also of those that are away: so their old words count nowhere, and
// who comes back with a clock that is behind learns of it.
func (f *Farm) proofs(join bool) []proof {
	own, err := f.codec.Marshal(f.cfg.Signer.Certificates()) // it may have been renewed
	if err != nil {
		f.cfg.Log.Error("gossip: this member's certificate can't be encoded", "err", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []proof{{Node: f.self.ID.String(), Address: f.word.address, Word: []byte(f.word.raw), Chain: own}}
	if !join {
		return out
	}
	for id, k := range f.roster {
		if k.cert.good {
			out = append(out, proof{Node: id.String(), Address: k.word.address, Word: []byte(k.word.raw), Chain: []byte(k.cert.sealed)})
		}
	}
	return out
}

func (f *Farm) refuse(err error) {
	f.metrics.refused.Inc()
	f.cfg.Log.Debug("gossip: a proof does not hold", "err", err)
}

// believeAll takes of proofs what holds, and passes certificates on that are news.
func (f *Farm) believeAll(proofs []proof) {
	var news []proof
	changed := false
	for _, p := range proofs[:min(len(proofs), knownMax)] {
		fresh, listed, err := f.believe(p)
		if err != nil {
			f.refuse(err)
		}
		if fresh {
			news = append(news, p)
		}
		changed = changed || listed
	}
	f.note(changed)
	if len(news) > newsMax {
		return
	}
	for _, p := range news {
		if b, err := f.codec.Marshal([]proof{{Node: p.Node, Chain: p.Chain}}); err == nil && len(b) <= packetMax {
			f.news.QueueBroadcast(passedOn{p.Node, b})
		}
	}
}

// passedOn is a certificate on its way to all members.
type passedOn struct {
	node string
	msg  []byte
}

// Invalidates implements memberlist.Broadcast: a newer one of the same member counts.
func (b passedOn) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(passedOn)
	return ok && o.node == b.node
}

func (b passedOn) Name() string { return b.node }

func (b passedOn) Message() []byte { return b.msg }

func (passedOn) Finished() {}

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
