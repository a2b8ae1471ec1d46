package farm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
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
	// findAlone is how often one asks that knows nobody, findAgain how often the others,
	// so that two halves of a farm that began apart find together.
	findAlone = 2 * time.Second
	findAgain = time.Minute
	// answersWanted is how many of a farm's members answer, more or less.
	answersWanted = 8
	// answersPerSecond bounds the answers of one, and heardPerSecond those looked at.
	answersPerSecond = 20
	heardPerSecond   = 1000
	// foundMax bounds those that are to be tried: each is of this farm.
	foundMax = 16
	// packetRoom takes what fits into a frame.
	packetRoom = 1500
)

// service is what is asked for.
const service = "_grange._udp.local."

// groups are where questions go, of IPv4 and IPv6.
var groups = map[string]net.IP{"udp4": net.IPv4(224, 0, 0, 251), "udp6": net.ParseIP("ff02::fb")}

const mdnsPort = 5353

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

// isFrom reports whether a member of the farm said so.
func (n notice) isFrom(key [32]byte, farm string) bool {
	return hmac.Equal([]byte(n.tag), []byte(n.sum(key, farm)))
}

var (
	serviceName  = dnsmessage.MustNewName(service)
	theQuestion  = dnsmessage.Question{Name: serviceName, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}
	legacyTTL    = uint32(10) // seconds, the most for one that asks from its own port
	noticeLength = 3          // strings
)

// ask returns a question's packet.
func ask() ([]byte, error) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{theQuestion}}
	return m.Pack()
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
	head := func(name dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: legacyTTL}
	}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, Response: true, Authoritative: true}, Questions: []dnsmessage.Question{theQuestion},
		Answers: []dnsmessage.Resource{
			{Header: head(serviceName), Body: &dnsmessage.PTRResource{PTR: instance}},
			{Header: head(instance), Body: &dnsmessage.TXTResource{TXT: []string{"v=1", "a=" + n.address, "t=" + n.tag}}},
		},
	}
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
		if !ours || !ok || len(txt.TXT) != noticeLength || txt.TXT[0] != "v=1" {
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

// keepFound looks for neighbours on the LAN that this member gossips on, and answers those
// that do, until ctx ends.
func (f *Farm) keepFound(ctx context.Context) {
	if f.cfg.Transport != nil {
		return
	}
	tick := time.NewTicker(placeCheck)
	defer tick.Stop()
	said := ""
	for ctx.Err() == nil {
		if err := f.find(ctx); err != nil && err.Error() != said {
			said = err.Error()
			f.cfg.Log.Warn("neighbours are not looked for on the LAN; --farm-join tells of some", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// find looks and answers until this member gossips elsewhere or ctx ends. Of loopback
// nobody hears, and nobody is asked there.
func (f *Farm) find(ctx context.Context) error {
	address := f.Address()
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Addr().IsLoopback() {
		<-ctx.Done()
		return nil
	}
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	link, err := lan.Interface(at.Addr())
	if err != nil {
		return err
	}
	group := &net.UDPAddr{IP: groups[network], Port: mdnsPort}
	own, err := net.ListenUDP(network, &net.UDPAddr{IP: at.Addr().AsSlice()})
	if err != nil {
		return err
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer own.Close()
	readers.Go(func() { f.hearNotices(own) })
	questions, err := net.ListenMulticastUDP(network, link, group)
	if err == nil {
		defer questions.Close()
		readers.Go(func() { f.answerAll(questions, own) })
	} else { // it can ask all the same
		f.cfg.Log.Debug("questions on the LAN are not heard", "err", err)
	}
	if network == "udp6" {
		group.Zone = link.Name
	}
	return f.keepAsking(ctx, address, func(b []byte) error { _, err := own.WriteTo(b, group); return err })
}

func (f *Farm) keepAsking(ctx context.Context, address string, send func([]byte) error) error {
	question, err := ask()
	if err != nil {
		return err
	}
	tick := time.NewTicker(findAlone)
	defer tick.Stop()
	var last time.Time
	for now := time.Now(); f.Address() == address; {
		if len(f.Live()) == 1 || now.Sub(last) > findAgain {
			if err := send(question); err != nil {
				return err
			}
			last = now.Add(time.Duration(mrand.Int64N(int64(findAgain / 4)))) // not all at once
		}
		select {
		case now = <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// answerAll answers questions from this member's subnet, until the socket is closed.
func (f *Farm) answerAll(questions, own *net.UDPConn) {
	some := rate.NewLimiter(answersPerSecond, answersPerSecond)
	b := make([]byte, packetRoom)
	for {
		n, from, err := questions.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		id, ok := asked(b[:n])
		if !ok || mrand.IntN(len(f.Live())) >= answersWanted || !some.Allow() {
			continue
		}
		if near, err := lan.Addresses(); err != nil || !lan.Beside(near, from.Addr()) {
			continue // what comes from elsewhere has been forged
		}
		f.mu.Lock()
		spoken, _, _ := use(f.keys, f.cfg.Now())
		said := newNotice(f.keys[spoken].key, f.name, f.word.address)
		f.mu.Unlock()
		answer, err := said.pack(id)
		if err == nil {
			_, err = own.WriteToUDPAddrPort(answer, from)
		}
		if err != nil {
			f.cfg.Log.Debug("a question on the LAN is not answered", "err", err)
		}
	}
}

// hearNotices has those joined who are of this farm, until the socket is closed.
func (f *Farm) hearNotices(own *net.UDPConn) {
	some := rate.NewLimiter(heardPerSecond, heardPerSecond)
	b := make([]byte, packetRoom)
	for {
		k, err := own.Read(b)
		if err != nil {
			return
		}
		if !some.Allow() {
			continue
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
	ours := false
	for _, k := range f.keys {
		ours = ours || n.isFrom(k.key, f.name)
	}
	if !ours || n.address == f.word.address || len(f.found) >= foundMax {
		return
	}
	for _, m := range f.here.Load().members {
		if m.Address == n.address {
			return
		}
	}
	f.found[n.address] = true
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
