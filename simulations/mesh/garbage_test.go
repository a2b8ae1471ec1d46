package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// connections that are opened at once to a port, and left half open.
	connections = 1000
	// garbageSize of the image that is read meanwhile, and garbageGrowth how much
	// memory a node may need more for all of it: what a thousand connections'
	// buffers take, twice, since a busy machine collects late.
	garbageSize   = 96 << 20
	garbageGrowth = 256 << 20
	// logLinesMax is how much a node may say of it all.
	logLinesMax = 100
	// garbagePatience is how long a conversation of garbage lasts at most.
	garbagePatience = 5 * time.Second
)

// port is a door of a node that anybody can knock at.
type port struct {
	name string
	dial func(context.Context) (net.Conn, error)
}

// ports are all of them. The sockets in the data folder are dialled as they are,
// the others from another host.
func ports(n *lab.Node, from *lab.Node) []port {
	at := func(network string, number int) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			return from.Host.Dial(ctx, network, fmt.Sprintf("%s:%d", n.Host.Addr(), number))
		}
	}
	socket := func(name string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(n.Data, name))
		}
	}
	return []port{
		{"swarm TCP", at("tcp", 4001)},
		{"swarm QUIC", at("udp", 4001)},
		{"farm TCP", at("tcp", 7946)},
		{"farm UDP", at("udp", 7946)},
		{"API TCP", at("tcp", 8080)},
		{"API socket", socket(api.SocketName)},
		{"NBD socket", socket("nbd.sock")},
	}
}

// garbage is what is sent: noise, what begins as it should and goes wrong, and
// lengths that nobody should believe.
func garbage() map[string][]byte {
	rng := rand.NewChaCha8([32]byte{9})
	noise := make([]byte, 256<<10)
	rng.Read(noise)
	huge := bytes.Repeat([]byte{0xff}, 64<<10)
	nbd := binary.BigEndian.AppendUint32(nil, 3)                          // fixed newstyle, no zeroes
	nbd = append(nbd, "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...)      // GO, of 4 GiB
	gossip := append([]byte{10, 0xff, 0xff, 0xff, 0xff}, noise[:4096]...) // encrypted, of 4 GiB
	return map[string][]byte{
		"noise":                noise,
		"nothing but ones":     huge,
		"zeros":                make([]byte, 64<<10),
		"a TLS hello cut off":  append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3}, noise[:64]...),
		"multistream, endless": append([]byte("\x13/multistream/1.0.0\n"), bytes.Repeat([]byte{0xff, 0xff, 0xff, 0x7f}, 4096)...),
		"HTTP, endless header": append([]byte("GET / HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("a"), 256<<10)...),
		"HTTP, huge body":      []byte("PUT /api/images/x HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: 9223372036854775807\r\n\r\n{\"source\":\""),
		"NBD, huge option":     nbd,
		"gossip, huge message": gossip,
	}
}

// TestGarbageOnEveryPort: noise, lies about lengths, half-open connections and a
// thousand at once come to each port of a node. It stays up, its memory stays
// bounded, and it serves on.
func TestGarbageOnEveryPort(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host := "10.77.2.2" // of the first node: the store's LAN came first
	n, err := l.Start(t.Context(), "a", store.URL, "--api", host+":8080", "--listen", "/ip4/"+host+"/tcp/4001,/ip4/"+host+"/udp/4001/quic-v1")
	if err != nil {
		t.Fatal(err)
	}
	neighbour := start(t, l, store.URL, "a")[0]
	path, sum := disk(t, l.Dir, garbageSize)
	run(t, n, "image", "import", "disk", path)
	readAll(t, []*lab.Node{n}, "before", "disk", sum)
	started := get[api.Status](t, n, "/api/status").Started
	before := metric(t, n, "process_resident_memory_bytes")

	if addrs := get[api.Status](t, n, "/api/status").Self.Addrs; len(addrs) != 2 {
		t.Fatalf("the node listens at %v, want TCP and QUIC", addrs)
	}
	var talks sync.WaitGroup
	for _, p := range ports(n, neighbour) {
		for what, bytes := range garbage() {
			talks.Go(func() {
				if err := talk(t.Context(), p, bytes); err != nil {
					t.Errorf("%s: %s: %v", p.name, what, err)
				}
			})
		}
	}
	talks.Wait()
	done := crowd(t, ports(n, neighbour))
	readAll(t, []*lab.Node{neighbour}, "crowded", "disk", sum)
	crowded := metric(t, n, "process_resident_memory_bytes")
	done()

	t.Logf("resident: %.0f MiB before, %.0f MiB amid %d connections", before/(1<<20), crowded/(1<<20), connections)
	if crowded > before+garbageGrowth {
		t.Errorf("the node needs %.0f bytes, and %.0f before the garbage", crowded, before)
	}
	if alive := len(get[api.Status](t, n, "/api/status").Farm); alive != 1 {
		t.Errorf("the node sees %d neighbours", alive)
	}
	readAll(t, []*lab.Node{n}, "after", "disk", sum)
	if lines := strings.Count(n.Tail(connections), "\n"); lines > logLinesMax {
		t.Errorf("the garbage has made the node write more than %d lines", lines)
	}
	if now := get[api.Status](t, n, "/api/status").Started; !now.Equal(started) {
		t.Error("the node has started anew")
	}
}

// talk sends bytes and hears what comes, until the node hangs up or some time has
// gone. Being hung up on is what garbage deserves.
func talk(ctx context.Context, p port, b []byte) error {
	conn, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	patience := garbagePatience
	if conn.LocalAddr().Network() == "udp" { // nobody hangs up
		patience /= 20
		b = b[:min(len(b), 1200)]
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	conn.Write(b) // cut short when the node hangs up
	io.Copy(io.Discard, conn)
	return nil
}

// crowd opens many connections to each port and leaves them half open, until done
// is called.
func crowd(t *testing.T, ports []port) (done func()) {
	t.Helper()
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), garbagePatience)
	defer cancel()
	for _, p := range ports {
		gate := make(chan struct{}, 64)
		for i := range connections {
			gate <- struct{}{}
			wg.Go(func() {
				defer func() { <-gate }()
				conn, err := p.dial(ctx)
				if err != nil {
					return // it may refuse so many
				}
				conn.SetWriteDeadline(time.Now().Add(garbagePatience))
				conn.Write([]byte{byte(i), 0xff, 0xff})
				mu.Lock()
				defer mu.Unlock()
				open = append(open, conn)
			})
		}
	}
	wg.Wait()
	t.Logf("%d of %d connections stand", len(open), connections*len(ports))
	return func() {
		for _, conn := range open {
			conn.Close()
		}
	}
}
