package farm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// knownMax bounds the names that are remembered: some times the largest farm.
	knownMax = 4096
	// strangersMax of them may be of those who only have the key: the largest farm, for
	// a newcomer hears of all who live before it hears their certificates.
	strangersMax = 1024
)

// known is what this member knows of another.
type known struct {
	word word // its newest; zero before the first
	cert certificate
	// at is the gossip address where it lives, as gossip says; "" when it doesn't.
	at string
}

type certificate struct {
	sealed string // as it travels; "" when there is none
	chain  trust.Chain
	who    trust.Identity
	// good says that it held when it was last looked at.
	good bool
}

// listed reports whether it is certified, and alive where its newest word says.
func (k *known) listed() bool { return k.cert.good && k.at != "" && k.at == k.word.address }

// roster is all that is known of others, by name. Pure: no I/O, no clock, no lock.
// Each change returns whether the list of members has changed by it.
type roster map[peer.ID]*known

// change applies f to what is known of a member and reports whether the list differs.
func (k *known) change(f func()) bool {
	listed, said := k.listed(), k.word.raw
	f()
	return k.listed() != listed || k.listed() && k.word.raw != said
}

// enter returns the entry of a member, made if need be. When all places are taken, one
// of the gone makes room, and for the certified one of those who are not.
func (r roster) enter(id peer.ID, certified bool) (*known, error) {
	if k := r[id]; k != nil {
		return k, nil
	}
	stranger := func(k *known) bool { return !k.cert.good }
	gone := func(k *known) bool { return k.at == "" }
	goneStranger := func(k *known) bool { return gone(k) && stranger(k) }
	if !certified && r.count(stranger) >= strangersMax && !r.evict(goneStranger) ||
		len(r) >= knownMax && !r.evict(goneStranger) && !r.evict(gone) && !(certified && r.evict(stranger)) {
		return nil, fmt.Errorf("%w: %d names are known already", content.ErrUnavailable, len(r))
	}
	k := &known{}
	r[id] = k
	return k, nil
}

func (r roster) count(which func(*known) bool) (n int) {
	for _, k := range r {
		if which(k) {
			n++
		}
	}
	return n
}

func (r roster) evict(worthless func(*known) bool) bool {
	for id, k := range r {
		if worthless(k) {
			delete(r, id)
			return true
		}
	}
	return false
}

// hear takes a member's word. One of an earlier start is content.ErrForbidden.
func (r roster) hear(id peer.ID, w word) (changed bool, err error) {
	k, err := r.enter(id, false)
	if err != nil {
		return false, err
	}
	if w.number < k.word.number || w.number == k.word.number && k.word.raw != "" && (w.raw != k.word.raw || w.address != k.word.address) {
		return false, fmt.Errorf("member %s at %s: %w: it has said another thing since", id, w.address, content.ErrForbidden)
	}
	return k.change(func() { k.word = w }), nil
}

// certify takes a verified certificate. One that holds gives way to one issued later.
func (r roster) certify(id peer.ID, c certificate) (changed bool, err error) {
	k, err := r.enter(id, true)
	if err != nil || k.cert.good && !c.chain[0].NotBefore.After(k.cert.chain[0].NotBefore) {
		return false, err
	}
	return k.change(func() { k.cert = c }), nil
}

// live notes where gossip sees a member.
func (r roster) live(id peer.ID, address string) (changed bool) {
	k, err := r.enter(id, false)
	return err == nil && k.change(func() { k.at = address })
}

// gone notes that gossip doesn't see a member any more. Its word and certificate are
// kept, for its return and against older words; of one without certificate nothing.
func (r roster) gone(id peer.ID) (changed bool) {
	k := r[id]
	if k == nil {
		return false
	}
	changed = k.change(func() { k.at = "" })
	if k.cert.sealed == "" {
		delete(r, id)
	}
	return changed
}

// uncertified returns where those live whose certificate is not known.
func (r roster) uncertified() (out []string) {
	for _, k := range r {
		if k.at != "" && k.cert.sealed == "" {
			out = append(out, k.at)
		}
	}
	return out
}

// members returns those that are listed and self, sorted by name.
func (r roster) members(self Member) []Member {
	out := []Member{self}
	for id, k := range r {
		if k.listed() {
			out = append(out, Member{ID: id, Identity: k.cert.who, Addrs: k.word.addrs, Address: k.at})
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// outsideMax is how many members hold a farm's paths from outside: a second one outlives
// the first.
const outsideMax = 2

// Outside returns the members that hold the farm's paths from outside, so that not each of
// those behind one NAT has places at relays: those that can be dialled from the world, then
// those that have such a place, then others, each by a number that nobody chooses. All who
// see the same members return the same ones, and a newcomer puts none of those that do in
// the place of one that does already. Pure.
func Outside(members []Member) []peer.ID {
	type candidate struct {
		id     peer.ID
		reach  int
		number [sha256.Size]byte
	}
	all := make([]candidate, 0, len(members))
	for _, m := range members {
		c := candidate{m.ID, 2, sha256.Sum256([]byte("grange outside " + m.Identity.Farm + "\x00" + string(m.ID)))}
		for _, a := range m.Addrs {
			if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
				c.reach = min(c.reach, 1)
			} else if manet.IsPublicAddr(a) {
				c.reach = 0
			}
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.reach, b.reach), bytes.Compare(a.number[:], b.number[:]))
	})
	var out []peer.ID
	for _, c := range all[:min(len(all), outsideMax)] {
		out = append(out, c.id)
	}
	return out
}
