package farm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// network is a simulated network in one process. What it can't deliver it drops; it
// never makes a sender wait.
type network struct {
	mu    sync.Mutex // guards what follows
	ports map[string]*port
	// loss is the share of packets dropped, and cut says which hosts are apart.
	loss   float64
	cut    func(from, to *port) bool
	random *rand.Rand
}

const lanDelay = 200 * time.Microsecond

func newLAN() *network {
	return &network{ports: map[string]*port{}, cut: func(_, _ *port) bool { return false }, random: rand.New(rand.NewPCG(1, 2))}
}

// port is one member's memberlist.Transport.
type port struct {
	lan     *network
	number  int
	dead    bool // guarded by lan.mu
	packets chan *memberlist.Packet
	streams chan net.Conn
}

// plug makes the port of address 10.0.0.number.
func (l *network) plug(number int) *port {
	p := &port{lan: l, number: number, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 64)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports[p.address()] = p
	return p
}

func (p *port) address() string { return fmt.Sprintf("10.0.0.%d:7946", p.number) }

// change lets a test alter the network.
func (l *network) change(f func(*network)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

// crash takes a host off the network for good. Who dialled it and was not accepted
// learns that: a write to a pipe would wait for ever.
func (p *port) crash() {
	p.lan.change(func(*network) {
		p.dead = true
		for {
			select {
			case c := <-p.streams:
				c.Close()
			default:
				return
			}
		}
	})
}

// reach returns the port of an address if a packet gets there.
func (p *port) reach(address string) *port {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	to := p.lan.ports[address]
	if to == nil || to.dead || p.dead || p.lan.cut(p, to) {
		return nil
	}
	return to
}

func (p *port) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IPv4(10, 0, 0, byte(p.number)), 7946, nil
}

func (p *port) WriteTo(b []byte, address string) (time.Time, error) {
	to := p.reach(address)
	p.lan.mu.Lock()
	lost := p.lan.random.Float64() < p.lan.loss
	p.lan.mu.Unlock()
	if to != nil && !lost {
		from := &net.UDPAddr{IP: net.IPv4(10, 0, 0, byte(p.number)), Port: 7946}
		buf := append([]byte(nil), b...)
		time.AfterFunc(lanDelay, func() {
			select {
			case to.packets <- &memberlist.Packet{Buf: buf, From: from, Timestamp: time.Now()}:
			default: // its buffer is full
			}
		})
	}
	return time.Now(), nil
}

func (p *port) PacketCh() <-chan *memberlist.Packet { return p.packets }
func (p *port) StreamCh() <-chan net.Conn           { return p.streams }
func (p *port) Shutdown() error                     { p.crash(); return nil }

func (p *port) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	to := p.reach(address)
	if to == nil {
		<-time.After(timeout)
		return nil, errors.New("dial " + address + ": i/o timeout")
	}
	p.lan.mu.Lock() // against a crash meanwhile
	defer p.lan.mu.Unlock()
	here, there := net.Pipe()
	if !to.dead {
		select {
		case to.streams <- there:
			return here, nil
		default:
		}
	}
	return nil, errors.New("dial " + address + ": connection refused")
}
