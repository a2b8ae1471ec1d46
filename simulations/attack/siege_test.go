package attack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/soak"
)

const (
	// siegeSize of the image that is read under siege, at random, and siegeReads how
	// often.
	siegeSize, siegeReads = 24 << 20, 500
	guestRead             = 4 << 10
	// siegeReadMax is what 99 of 100 reads of a cold guest may take under siege.
	siegeReadMax = time.Second
)

// guest is a client of a disk over NBD that asks for one thing at a time.
type guest struct {
	conn net.Conn
	n    uint64
}

// attach opens a disk by its URI.
func attach(uri string) (*guest, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", u.Query().Get("socket"))
	if err != nil {
		return nil, err
	}
	g := &guest{conn: conn}
	conn.SetDeadline(time.Now().Add(readTimeout))
	return g, g.negotiate(strings.TrimPrefix(u.Path, "/"))
}

func (g *guest) negotiate(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(g.conn, hello[:]); err != nil {
		return err
	}
	const fixedNoZeroes, optGo = 3, 7
	b := binary.BigEndian.AppendUint32(nil, fixedNoZeroes)
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(append(b, export...), 0, 0)
	if _, err := g.conn.Write(b); err != nil {
		return err
	}
	for {
		var reply [20]byte
		if _, err := io.ReadFull(g.conn, reply[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, g.conn, int64(binary.BigEndian.Uint32(reply[16:]))); err != nil {
			return err
		}
		switch kind := binary.BigEndian.Uint32(reply[12:]); {
		case kind == 1:
			return nil
		case kind&(1<<31) != 0:
			return fmt.Errorf("the disk is refused: %#x", kind)
		}
	}
}

// read fills p from an offset of the disk.
func (g *guest) read(p []byte, off int64) error {
	g.n++
	g.conn.SetDeadline(time.Now().Add(readTimeout))
	b := binary.BigEndian.AppendUint64(nil, 0x25609513_0000_0000) // read, no flags
	b = binary.BigEndian.AppendUint64(b, g.n)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	if _, err := g.conn.Write(b); err != nil {
		return err
	}
	var reply [16]byte
	if _, err := io.ReadFull(g.conn, reply[:]); err != nil {
		return err
	}
	if errno := binary.BigEndian.Uint32(reply[4:]); errno != 0 {
		return fmt.Errorf("the guest gets error %d", errno)
	}
	_, err := io.ReadFull(g.conn, p)
	return err
}

// TestUnderSiege: all that strangers do, done at once to one node, fails no read of a
// cold guest there, takes no more memory than a node may, and changes nothing of what
// its status says.
func TestUnderSiege(t *testing.T) {
	l := newLab(t)
	from := start(t, l, "alpha")[0]
	const address = "10.77.2.2:8080"
	victim, err := l.Start(t.Context(), "beta", "", "--api", address)
	if err != nil {
		t.Fatal(err)
	}
	i := look(t, from)
	d := newDisk(t, l.Dir, siegeSize, 110)
	run(t, from, "image", "import", "image", d.path)
	device := run(t, victim, "volume", "create", "v", "--from", "image:image")
	fromNow(t, victim)

	var grown atomic.Int64
	t.Logf("%d requests hang", hangs(t, l, address, soak.Of(1200, 3000)))
	i.gather(t, l, strangers(4), &staller{bitmaps: everything}, victim, from)
	i.gather(t, l, strangers(3), &staller{bitmaps: growing(&grown)}, victim, from)
	t.Logf("%d streams are open", i.silence(t, l, victim, func(s trust.Signer) []byte { return hello(s, wire.LaneControl) }))
	flood := i.enter(t, outside(t, l), stranger(), conduct{})
	flood.visit(t, victim)
	ctx, cancel := context.WithCancel(t.Context())
	var flooding sync.WaitGroup
	flooding.Go(func() {
		n, err := i.provide(ctx, flood, infoOf(t, victim).ID, func(int) []byte { return content.CID(randomBytes(content.CIDSize)).CID().Hash() })
		t.Logf("%d keys were announced: %v", n, err)
	})
	took, err := besieged(device, d)
	cancel()
	flooding.Wait()
	if err != nil {
		t.Errorf("after %d reads: %v", len(took), err)
	}
	if slices.Sort(took); len(took) > 0 {
		p99 := took[len(took)*99/100]
		t.Logf("%d reads: p50 %s, p99 %s, max %s", len(took), took[len(took)/2], p99, took[len(took)-1])
		if p99 > siegeReadMax && soak.Full() {
			t.Errorf("99 of 100 reads took up to %s; the limit is %s", p99, siegeReadMax)
		}
	}
	bounded(t, victim, residentMax)
	if s := statusOf(t, victim); !s.Ready || s.Origin.State != "ok" {
		t.Errorf("status: ready %v, origin %s %s", s.Ready, s.Origin.State, s.Origin.Detail)
	}
}

// besieged reads a disk at random until a read fails, and returns how long each took.
func besieged(device string, d disk) (took []time.Duration, err error) {
	g, err := attach(device)
	if err != nil {
		return nil, err
	}
	defer g.conn.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, guestRead)
	for range siegeReads {
		off := guestRead * rng.Int64N(int64(len(d.bytes)/guestRead))
		began := time.Now()
		if err := g.read(p, off); err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
		if !bytes.Equal(p, d.bytes[off:off+guestRead]) {
			return took, errors.New("other bytes")
		}
	}
	return took, nil
}
