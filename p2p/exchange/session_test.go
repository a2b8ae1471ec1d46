package exchange

import (
	"errors"
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

// TestForgottenSessionOpensNothing holds that who still has a session when it is
// forgotten gets no stream of it: nobody would find it stalled, or close it.
func TestForgottenSessionOpensNothing(t *testing.T) {
	m := newMesh()
	server, client := m.pair(t, newLibrary(m.root, 1))
	s := client.session(server.id)
	for i := range sessionsMax {
		client.session(peer.ID(fmt.Sprint(i)))
	}
	if client.session(server.id) == s {
		t.Fatal("it was not forgotten")
	}
	if _, err := s.lane(within(t), wire.LaneBulk); !errors.Is(err, ErrDisconnected) {
		t.Errorf("got %v, want ErrDisconnected", err)
	}
}

// TestRequestEndsOnce has the reader of a stream end a request that its failure
// has ended already.
func TestRequestEndsOnce(t *testing.T) {
	s := &session{places: turns.Turns{Max: 1}}
	p := newPending()
	place := turns.NewTicket("", 0)
	p.give = func() { s.places.Give(place, 0) }
	if err := s.places.Wait(within(t), place); err != nil {
		t.Fatal(err)
	}
	o := &outbound{session: s, live: map[uint32]*pending{1: p}}
	for range 2 {
		o.finish(1, p, nil)
	}
	for free := range 2 {
		if _, taken := s.places.Take(turns.NewTicket("", 0)); taken != (free == 0) {
			t.Errorf("with %d taken another one is: %t", free, taken)
		}
	}
}

// TestCancelCountsOnce: each cancel costs a goroutine, so an asker does not get
// one for each frame that it sends.
func TestCancelCountsOnce(t *testing.T) {
	canceled := 0
	in := &inbound{live: map[uint32]open{1: {cancel: func(error) { canceled++ }}}}
	for range 3 {
		in.cancel(1)
		in.cancel(2)
	}
	if canceled != 1 {
		t.Errorf("canceled %d times, want once", canceled)
	}
}
