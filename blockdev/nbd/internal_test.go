package nbd

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sync/semaphore"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content/scratch"
)

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04disk\x00\x01\x00\x03"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name, err := parseInfo(data)
		if err == nil && (len(name) > nameMax || len(data) < 6+len(name) || strings.ContainsRune(name, 0)) {
			t.Errorf("%q has the name %q", data, name)
		}
	})
}

func FuzzParseMeta(f *testing.F) {
	f.Add(uint32(optSetMeta), []byte("\x00\x00\x00\x04disk\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"))
	f.Add(uint32(optListMeta), []byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(uint32(optSetMeta), []byte("\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, code uint32, data []byte) {
		_, queries, err := parseMeta(data)
		if base := (metaContext{name: contextBase}); err == nil && code == optSetMeta && base.asked(code, queries) && !bytes.Contains(data, []byte(contextBase)) {
			t.Errorf("%q asks for %s", data, contextBase)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add(binary.BigEndian.AppendUint32(nil, magicRequest), uint16(0), uint16(cmdRead), uint64(1), uint64(512), uint32(512))
	f.Fuzz(func(t *testing.T, head []byte, flags, command uint16, cookie, offset uint64, length uint32) {
		want := request{flags, command, cookie, offset, length}
		p := append(bytes.Clone(head), make([]byte, 4)...)[:4]
		good := binary.BigEndian.Uint32(p) == magicRequest
		p = binary.BigEndian.AppendUint16(p, flags)
		p = binary.BigEndian.AppendUint16(p, command)
		p = binary.BigEndian.AppendUint64(p, cookie)
		p = binary.BigEndian.AppendUint64(p, offset)
		p = binary.BigEndian.AppendUint32(p, length)
		got, err := parseRequest(p)
		if (err == nil) != good || good && got != want {
			t.Errorf("%x is %v, %v", p, got, err)
		}
	})
}

// TestChunksBringAllBytes lays out any mix of zeros and data, and reads it back.
func TestChunksBringAllBytes(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var data []byte
		for range rapid.IntRange(1, 40).Draw(r, "runs") {
			fill := byte(rapid.IntRange(0, 1).Draw(r, "fill"))
			data = append(data, bytes.Repeat([]byte{fill}, 512*rapid.IntRange(1, 64).Draw(r, "sectors"))...)
		}
		req := request{cookie: 7, offset: 512 * rapid.Uint64Range(0, 1<<40).Draw(r, "sector"), length: uint32(len(data))}
		if rapid.Bool().Draw(r, "one piece") {
			req.flags = flagDF
		}
		p := append(make([]byte, dataHead), data...)
		p = p[:layChunks(p, req)]
		got, chunks := make([]byte, 0, len(data)), 0
		for done := false; !done; chunks++ {
			flags, kind := binary.BigEndian.Uint16(p[4:]), binary.BigEndian.Uint16(p[6:])
			length := int(binary.BigEndian.Uint32(p[16:]))
			if off := binary.BigEndian.Uint64(p[20:]) - req.offset; off != uint64(len(got)) {
				r.Fatalf("a chunk at %d, want %d", off, len(got))
			}
			switch kind {
			case chunkData:
				got = append(got, p[dataHead:structuredSize+length]...)
			case chunkHole:
				got = append(got, make([]byte, binary.BigEndian.Uint32(p[dataHead:]))...)
			}
			done = flags&chunkDone != 0
			p = p[structuredSize+length:]
		}
		if len(p) > 0 || !bytes.Equal(got, data) {
			r.Fatalf("%d bytes behind the last chunk, or other data", len(p))
		}
		if chunks > chunksMax+1 || req.flags != 0 && chunks != 1 {
			r.Fatalf("%d chunks", chunks)
		}
	})
}

func TestBuffersFitTheirReplies(t *testing.T) {
	budgeted := func(size int64) *conn {
		return &conn{server: new(Server), budget: &budget{semaphore.NewWeighted(size), new(scratch.Pool)}}
	}
	c := budgeted(1 << 40)
	status := structuredSize + 4 + 8*extentsMax
	if b := c.take(replyMax); cap(*b) < status || cap(*b) < replyMax {
		t.Errorf("the smallest class has room for %d, want %d for a block status", cap(*b), status)
	}
	for _, n := range []int{1, 512, 4096, 4097, 256 << 10, payloadMax} {
		b := c.take(n)
		exact := budgeted(int64(cap(*b)))
		if exact.take(n); cap(*b) < n+dataHead || exact.budget.TryAcquire(1) {
			t.Errorf("a buffer for %d has room for %d, and costs less", n, cap(*b))
		}
	}
}

func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	if !nonblocking {
		return // there it holds the one that the next request is read into
	}
	in := input{pool: new(scratch.Pool)}
	in.hold()
	in.drop()
	if in.buf != nil {
		t.Error("an empty buffer is kept")
	}
	in.hold()
	in.w = 1
	in.drop()
	if in.buf == nil {
		t.Error("a buffer with an unread byte is dropped")
	}
}
