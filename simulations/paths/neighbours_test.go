package paths

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// rogue is a stranger on a LAN: it asks for neighbours as members do, keeps what it is
// answered, and answers itself that one is where it listens.
type rogue struct {
	own, questions *net.UDPConn
	door           net.Listener
	readers        sync.WaitGroup
	visits         atomic.Int64 // connections to its door
	asked          atomic.Int64

	mu    sync.Mutex // guards heard
	heard [][]byte
}

func newRogue(t *testing.T, h *netns.Host) *rogue {
	t.Helper()
	r := &rogue{}
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	err := h.Inside(func() (err error) {
		if r.own, err = net.ListenUDP("udp4", &net.UDPAddr{IP: h.Addr().AsSlice()}); err != nil {
			return err
		}
		eth, err := net.InterfaceByName("eth0")
		if err == nil {
			r.questions, err = net.ListenMulticastUDP("udp4", eth, group)
		}
		return err
	})
	if err == nil {
		r.door, err = h.Listen(t.Context(), "tcp", h.Addr().String()+":7946")
	}
	if err != nil {
		t.Fatal(err)
	}
	r.readers.Go(func() { r.welcome() })
	r.readers.Go(func() { r.listen() })
	r.readers.Go(func() { r.lie(h.Addr().String() + ":7946") })
	t.Cleanup(func() {
		for _, c := range []interface{ Close() error }{r.own, r.questions, r.door} {
			c.Close()
		}
		r.readers.Wait()
	})
	return r
}

func (r *rogue) welcome() {
	for {
		c, err := r.door.Accept()
		if err != nil {
			return
		}
		r.visits.Add(1)
		c.Close()
	}
}

func (r *rogue) listen() {
	b := make([]byte, 1500)
	for {
		n, err := r.own.Read(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.heard = append(r.heard, bytes.Clone(b[:n]))
		r.mu.Unlock()
	}
}

// lie answers each question with what it has heard of members, at its own address.
func (r *rogue) lie(door string) {
	b := make([]byte, 1500)
	for {
		n, from, err := r.questions.ReadFromUDP(b)
		if err != nil {
			return
		}
		r.asked.Add(1)
		_, _ = r.questions.WriteTo(b[:n], &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353})
		r.mu.Lock()
		for _, heard := range r.heard {
			var m dnsmessage.Message
			if m.Unpack(heard) != nil {
				continue
			}
			for i := range m.Answers {
				if txt, ok := m.Answers[i].Body.(*dnsmessage.TXTResource); ok {
					txt.TXT[1] = "a=" + door
				}
			}
			if forged, err := m.Pack(); err == nil {
				_, _ = r.own.WriteTo(forged, from)
			}
		}
		r.mu.Unlock()
	}
}

func (r *rogue) ask(t *testing.T) {
	t.Helper()
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("_grange._udp.local."), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}
	b, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{q}}).Pack()
	if err == nil {
		_, err = r.own.WriteTo(b, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rogue) answers() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard
}

// TestFarmsFormOnALAN: nobody is told of a neighbour. Two farms on one LAN find together,
// each for itself; a stranger there learns nothing of them and is not met.
func TestFarmsFormOnALAN(t *testing.T) {
	l := newLab(t)
	l.Untold = true
	first := start(t, l, "garden", everywhere()...)
	stranger, err := l.Net.Host(t.Context(), "garden")
	if err != nil {
		t.Fatal(err)
	}
	r := newRogue(t, stranger)
	await(t, "the stranger is answered", func() bool { r.ask(t); return len(r.answers()) > 0 })
	farms := map[string][]*lab.Node{"garden": {first}}
	for _, farm := range []string{"garden", "meadow", "meadow", "garden", "meadow"} {
		token := run(t, first, "token", "create", "--role", "node", "--farm", farm)
		farms[farm] = append(farms[farm], start(t, l, "garden", append([]string{"--join", token}, everywhere()...)...))
	}
	for name, farm := range farms {
		for _, n := range farm {
			await(t, "the farm forms", func() bool { return len(get[api.Status](t, n, "/api/status").Farm) == len(farm)-1 })
			for _, p := range get[api.Status](t, n, "/api/status").Farm {
				if p.Farm != name {
					t.Errorf("%s of farm %s has a neighbour of %s", n.Name, name, p.Farm)
				}
			}
		}
	}
	self := get[api.Status](t, first, "/api/status").Self
	for _, answer := range r.answers() {
		for _, secret := range []string{"garden", "meadow", self.ID, self.Mesh} {
			if strings.Contains(string(answer), secret) {
				t.Errorf("a stranger is told %q", answer)
			}
		}
	}
	if r.asked.Load() == 0 || r.visits.Load() > 0 {
		t.Errorf("the stranger was asked %d times, and met %d times", r.asked.Load(), r.visits.Load())
	}
	warmAll(t, first, farms)
}

// warmAll has all nodes of farms read an image.
func warmAll(t *testing.T, first *lab.Node, farms map[string][]*lab.Node) {
	t.Helper()
	publish(t, first, "disk")
	for _, farm := range farms {
		for _, n := range farm {
			warm(t, n, "disk")
		}
	}
}
