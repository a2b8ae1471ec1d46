package exchange

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

// written is a stream that takes what is written.
type written struct {
	network.Stream
	sent   bytes.Buffer
	writes int
}

func (w *written) SetWriteDeadline(time.Time) error { return nil }

func (w *written) Write(p []byte) (int, error) {
	w.writes++
	return w.sent.Write(p)
}

// TestRoomIsOneWrite: a body that lies in the room lent for it leaves with its head in one
// write, and the same bytes do as from anywhere else.
func TestRoomIsOneWrite(t *testing.T) {
	x := &Exchange{codec: new(codec)}
	r := &responder{in: &inbound{x: x}, turn: newLock()}
	body := bytes.Repeat([]byte("abc"), 40<<10)
	lent := append(r.Room(len(body)), body...)
	var one, other written
	d := wire.Data{Index: 7, Raw: len(body), Stored: len(body)}
	for stream, b := range map[*written][]byte{&one: lent, &other: body} {
		f := newFramed(stream, time.Second, new(atomic.Int64))
		if err := f.sendData(9, d, Object{Body: b}, r.around(b), func(int) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	if one.writes != 1 || other.writes < 2 || !bytes.Equal(one.sent.Bytes(), other.sent.Bytes()) {
		t.Errorf("%d writes of %d bytes, %d of %d from elsewhere", one.writes, one.sent.Len(), other.writes, other.sent.Len())
	}
}

// TestRoomOfAnswers: a server answers from one room, again and again, and from elsewhere.
func TestRoomOfAnswers(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 16)
	l.want = func(ctx context.Context, _ Peer, req Request, w Responder) {
		for _, index := range req.Indexes {
			body := l.chunks[index].Bytes()
			if index%3 != 0 {
				body = append(w.Room(len(body)), body...)
			}
			if w.Data(ctx, index, Object{Body: body}) != nil {
				return
			}
		}
	}
	server, client := m.pair(t, l)
	came := 0
	err := client.Want(within(t), server.id, Request{Root: l.root, Indexes: indexes(0, 16), Priority: PriorityPrefetch}, func(r Reply) {
		if d, ok := r.(*Data); ok {
			if _, err := content.Verify(l.chunks[d.Index].CID(), d.Body); err != nil {
				t.Error(err)
			}
			came++
		}
	})
	if err != nil || came != 16 {
		t.Errorf("%d of 16 came: %v", came, err)
	}
}
