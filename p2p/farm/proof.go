package farm

import (
	"errors"
	"fmt"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/peer"

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
	w := word{address: f.Address(), number: max(number, uint64(f.cfg.Now().UnixMilli())), addrs: f.cfg.Addrs}
	w, err := w.sign(f.name, f.cfg.Signer)
	if err != nil {
		return fmt.Errorf("farm %s: %w", f.name, err)
	}
	f.mu.Lock()
	f.word = w
	f.self.Address = w.address
	f.publish()
	f.mu.Unlock()
	return f.list.UpdateNode(sayTimeout)
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

// refuse counts a proof that does not hold.
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

// Name implements memberlist.NamedBroadcast.
func (b passedOn) Name() string { return b.node }

// Message implements memberlist.Broadcast.
func (b passedOn) Message() []byte { return b.msg }

// Finished implements memberlist.Broadcast.
func (passedOn) Finished() {}
