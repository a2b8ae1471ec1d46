package farm

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/lan"
)

// How members find each other on their LAN without being told of any: by multicast DNS
// (RFC 6762). A member asks for the service, from a port of its own, and is answered
// there by some of those that gossip. What they say tells a stranger that there is a
// grange, and nothing of its mesh or farm; and what a stranger says costs a member the
// sum of a few bytes: it is neither dialled nor remembered.
const (
	// findAgain is how often one asks that is not alone, so that two halves of a farm that
	// began apart find together. One that is asks at each placeCheck.
	findAgain = time.Minute
	// answersWanted is how many of a farm's members answer, more or less, and
	// answersPerSecond bounds the answers of one.
	answersWanted    = 8
	answersPerSecond = 20
	// foundMax bounds those that are to be tried: each is of this farm.
	foundMax = 16
	// packetRoom takes what fits into a frame.
	packetRoom = 1500

	// service is what is asked for, at the port and in the groups of multicast DNS.
	service  = "_grange._udp.local."
	mdnsPort = 5353
	group4   = "224.0.0.251"
	group6   = "ff02::fb"
	// legacyTTL is the most for who asks from a port of its own, in seconds.
	legacyTTL = 10
)

// notice is an answer: where a member gossips, which only those who have the gossip's key
// can tell from what others say. It travels as a TXT record of the service's instance
// NONCE, with these strings:
//
//	v=1
//	a=HOST:PORT
//	t=HEX, of HMAC-SHA256 with that key over "grange neighbour 1", 0, farm, 0, NONCE, 0, HOST:PORT
type notice struct {
	nonce   string // 32 hex digits, others in each answer, so that two can't be connected
	address string
	tag     string
}

func newNotice(key [32]byte, farm, address string) notice {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	n := notice{nonce: hex.EncodeToString(nonce[:]), address: address}
	n.tag = n.sum(key, farm)
	return n
}

func (n notice) sum(key [32]byte, farm string) string {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("grange neighbour 1\x00" + farm + "\x00" + n.nonce + "\x00" + n.address))
	return hex.EncodeToString(mac.Sum(nil))
}

func question() dnsmessage.Message {
	return dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(service), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}}}
}

// asked reads a question for the service; ok is false for all else.
func asked(b []byte) (id uint16, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return 0, false
	}
	for {
		q, err := p.Question()
		if err != nil {
			return 0, false
		}
		if (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) && strings.EqualFold(q.Name.String(), service) {
			return h.ID, true
		}
	}
}

// pack returns the packet that answers the question of that number.
func (n notice) pack(id uint16) ([]byte, error) {
	instance, err := dnsmessage.NewName(n.nonce + "." + service)
	if err != nil {
		return nil, err
	}
	m := question()
	m.Header = dnsmessage.Header{ID: id, Response: true, Authoritative: true}
	head := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: legacyTTL}
	m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.PTRResource{PTR: instance}})
	head.Name = instance
	m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{"v=1", "a=" + n.address, "t=" + n.tag}}})
	return m.Pack()
}

// readNotice reads an answer; what is none is content.ErrCorrupt.
func readNotice(b []byte) (notice, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err == nil && h.Response {
		err = p.SkipAllQuestions()
	}
	for err == nil && h.Response {
		var r dnsmessage.Resource
		if r, err = p.Answer(); err != nil {
			break
		}
		nonce, ours := strings.CutSuffix(r.Header.Name.String(), "."+service)
		txt, ok := r.Body.(*dnsmessage.TXTResource)
		if !ours || !ok || len(txt.TXT) != 3 || txt.TXT[0] != "v=1" {
			continue
		}
		address, isAddress := strings.CutPrefix(txt.TXT[1], "a=")
		tag, isTag := strings.CutPrefix(txt.TXT[2], "t=")
		if _, err := netip.ParseAddrPort(address); err == nil && isAddress && isTag {
			return notice{nonce, address, tag}, nil
		}
	}
	return notice{}, fmt.Errorf("an answer on the LAN: %w", content.ErrCorrupt)
}

// finder asks for neighbours on the LAN of one address of this host, and answers those that
// ask there.
type finder struct {
	at             netip.Addr
	own, questions *net.UDPConn // the second is nil where none can be heard
	group          *net.UDPAddr
	asked          time.Time
	readers        sync.WaitGroup
}

func (l *finder) close() {
	if l == nil {
		return
	}
	l.own.Close()
	if l.questions != nil {
		l.questions.Close()
	}
	l.readers.Wait()
}

// find asks once more, if it is time to, with a finder of that address: the one it has, or
// another in its place. It returns nil when there is none.
func (f *Farm) find(l *finder, at netip.Addr) *finder {
	if l == nil || l.at != at {
		l.close()
		var err error
		if l, err = f.newFinder(at); err != nil {
			f.cfg.Log.Debug("neighbours are not looked for on the LAN", "err", err)
			return nil
		}
	}
	now := time.Now()
	if len(f.Live()) > 1 && now.Sub(l.asked) < findAgain {
		return l
	}
	l.asked = now.Add(time.Duration(mrand.Int64N(int64(findAgain / 4)))) // not all at once
	m := question()
	b, err := m.Pack()
	if err == nil {
		_, err = l.own.WriteTo(b, l.group)
	}
	if err != nil {
		f.cfg.Log.Debug("neighbours can't be asked for on the LAN", "err", err)
	}
	return l
}

func (f *Farm) newFinder(at netip.Addr) (*finder, error) {
	own, err := lan.Addresses()
	i := slices.IndexFunc(own, func(a lan.Address) bool { return a.Addr() == at })
	if err != nil || i < 0 {
		return nil, fmt.Errorf("%s: %w: it is no address of a LAN: %w", at, content.ErrNotFound, err)
	}
	link, err := net.InterfaceByName(own[i].Interface)
	if err != nil {
		return nil, err
	}
	l := &finder{at: at, group: &net.UDPAddr{IP: net.ParseIP(group4), Port: mdnsPort}}
	network := "udp4"
	if at.Is6() {
		network, l.group.IP, l.group.Zone = "udp6", net.ParseIP(group6), link.Name
	}
	if l.own, err = net.ListenUDP(network, &net.UDPAddr{IP: at.AsSlice()}); err != nil {
		return nil, err
	}
	l.readers.Go(func() { f.hearNotices(l.own) })
	if l.questions, err = net.ListenMulticastUDP(network, link, &net.UDPAddr{IP: l.group.IP, Port: mdnsPort}); err == nil {
		l.readers.Go(func() { f.answerAll(l, own[i].Prefix) })
	} else {
		f.cfg.Log.Debug("questions on the LAN are not heard", "err", err)
	}
	return l, nil
}

// answerAll answers questions from a subnet, until the socket is closed.
func (f *Farm) answerAll(l *finder, subnet netip.Prefix) {
	some := rate.NewLimiter(answersPerSecond, answersPerSecond)
	b := make([]byte, packetRoom)
	for {
		n, from, err := l.questions.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		near := subnet.Contains(from.Addr().Unmap().WithZone("")) // what is not has been forged
		id, ok := asked(b[:n])
		if !near || !ok || mrand.IntN(len(f.Live())) >= answersWanted || !some.Allow() {
			continue
		}
		f.mu.Lock()
		spoken, _, _ := use(f.keys, f.cfg.Now())
		said := newNotice(f.keys[spoken].key, f.name, f.word.address)
		f.mu.Unlock()
		answer, err := said.pack(id)
		if err == nil {
			_, err = l.own.WriteToUDPAddrPort(answer, from)
		}
		if err != nil {
			f.cfg.Log.Debug("a question on the LAN is not answered", "err", err)
		}
	}
}

// hearNotices has those joined who are of this farm, until the socket is closed.
func (f *Farm) hearNotices(own *net.UDPConn) {
	b := make([]byte, packetRoom)
	for {
		k, err := own.Read(b)
		if err != nil {
			return
		}
		if n, err := readNotice(b[:k]); err == nil {
			f.meet(n)
		}
	}
}

// meet has a neighbour joined that a notice is of, if it is one.
func (f *Farm) meet(n notice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ours := slices.ContainsFunc(f.keys, func(k agedKey) bool { return hmac.Equal([]byte(n.tag), []byte(n.sum(k.key, f.name))) })
	here := slices.ContainsFunc(f.here.Load().members, func(m Member) bool { return m.Address == n.address })
	if ours && !here && len(f.found) < foundMax {
		f.found[n.address] = true
		f.rouse()
	}
}
