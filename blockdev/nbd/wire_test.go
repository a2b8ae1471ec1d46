package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/origin/content"
)

const diskSize = 4 << 20

// serveDisk serves one device as "disk".
func serveDisk(tb testing.TB, d blockdev.Device) (uri string) {
	tb.Helper()
	return start(tb, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": d})}, "disk")
}

func TestHandshakeAnswersEachOption(t *testing.T) {
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"a": newMemory(diskSize), "b": newMemory(512)})}, "a")
	long := strings.Repeat("x", 4097)
	for _, tt := range []struct {
		name string
		code uint32
		data []byte
		want []uint32
	}{
		{"list", optList, nil, []uint32{repServer, repServer, repAck}},
		{"list with data", optList, []byte("x"), []uint32{errInvalid}},
		{"TLS", optStartTLS, nil, []uint32{errUnsup}},
		{"extended headers", 11, nil, []uint32{errUnsup}},
		{"unknown", 77, []byte("data"), []uint32{errUnsup}},
		{"too big", 77, make([]byte, 100<<10), []uint32{errTooBig}},
		{"info", optInfo, pack(counted("a"), uint16(1), uint16(3)), []uint32{repInfo, repInfo, repInfo, repAck}},
		{"info of nothing", optInfo, pack(counted("c"), uint16(0)), []uint32{errUnknown}},
		{"info cut short", optInfo, pack(counted("a")), []uint32{errInvalid}},
		{"info with a wrong count", optInfo, pack(counted("a"), uint16(2), uint16(3)), []uint32{errInvalid}},
		{"info of a long name", optInfo, pack(counted(long), uint16(0)), []uint32{errInvalid}},
		{"info of a name beyond the data", optInfo, pack(uint32(1<<31), "a"), []uint32{errInvalid}},
		{"info of a name with a zero", optInfo, pack(counted("a\x00"), uint16(0)), []uint32{errInvalid}},
		{"info of no name at all", optInfo, nil, []uint32{errInvalid}},
		{"set before structured replies", optSetMeta, meta("a", "base:allocation"), []uint32{errInvalid}},
		{"structured with data", optStructured, []byte{1}, []uint32{errInvalid}},
		{"structured", optStructured, nil, []uint32{repAck}},
		{"structured again", optStructured, nil, []uint32{repAck}},
		{"list all contexts", optListMeta, meta("a"), []uint32{repMeta, repAck}},
		{"list base contexts", optListMeta, meta("a", "base:"), []uint32{repMeta, repAck}},
		{"list another", optListMeta, meta("a", "qemu:"), []uint32{repAck}},
		{"set nothing", optSetMeta, meta("a"), []uint32{repAck}},
		{"set a namespace", optSetMeta, meta("a", "base:"), []uint32{repAck}},
		{"set two", optSetMeta, meta("a", "x:y", "base:allocation"), []uint32{repMeta, repAck}},
		{"set of no export", optSetMeta, meta("c", "base:allocation"), []uint32{errUnknown}},
		{"set cut short", optSetMeta, meta("a", "base:allocation")[:9], []uint32{errInvalid}},
		{"set with more behind", optSetMeta, append(meta("a"), 1), []uint32{errInvalid}},
		{"go to nothing", optGo, pack(counted("c"), uint16(0)), []uint32{errUnknown}},
		{"leave", optAbort, nil, []uint32{repAck}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := greet(t, uri)
			if tt.code == optSetMeta && tt.name != "set before structured replies" {
				c.mustOption(optStructured)
			}
			var got []uint32
			for _, s := range c.option(tt.code, tt.data) {
				got = append(got, s.kind)
			}
			if !slices.Equal(got, tt.want) {
				t.Fatalf("answers %#x, want %#x", got, tt.want)
			}
			if tt.code == optAbort {
				c.ended()
				return
			}
			c.mustOption(optStructured) // still in step, whatever it was
		})
	}
}

func TestInfoTellsSizesAndFlags(t *testing.T) {
	small := newMemory(diskSize)
	readOnly := newMemory(diskSize)
	readOnly.geometry = blockdev.Geometry{Size: diskSize, BlockSize: 4096, PreferredSize: 128 << 10, ReadOnly: true}
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"rw": small, "ro": readOnly})}, "rw")
	const common = 1<<0 | 1<<2 | 1<<3 | 1<<8 | 1<<10
	for _, tt := range []struct {
		name       string
		structured bool
		flags      uint16
		sizes      [3]uint32
	}{
		{"rw", true, common | 1<<5 | 1<<6 | 1<<7 | 1<<11, [3]uint32{512, 4096, 32 << 20}},
		{"rw", false, common | 1<<5 | 1<<6 | 1<<11, [3]uint32{512, 4096, 32 << 20}},
		{"ro", true, common | 1<<1 | 1<<7, [3]uint32{4096, 128 << 10, 32 << 20}},
	} {
		c := greet(t, uri)
		if tt.structured {
			c.mustOption(optStructured)
		}
		want := []said{
			{repInfo, pack(uint16(0), uint64(diskSize), tt.flags)},
			{repInfo, pack(uint16(1), tt.name)},
			{repInfo, pack(uint16(3), tt.sizes[0], tt.sizes[1], tt.sizes[2])},
			{repAck, []byte{}},
		}
		got := c.option(optInfo, pack(counted(tt.name), uint16(0)))
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", tt.name, got, want)
		}
	}
}

func TestOldestWayOpensAnExport(t *testing.T) {
	uri := serveDisk(t, newMemory(diskSize).fill())
	for _, tt := range []struct{ flags, zeroes int }{{0, 124}, {1, 124}, {3, 0}} {
		c := &client{TB: t, conn: connect(t, uri), asked: map[uint64]ask{}}
		c.in = newReader(c.conn)
		c.bytes(18)
		c.send(uint32(tt.flags), "IHAVEOPT", uint32(optExportName), uint32(4), "disk")
		if got := binary.BigEndian.Uint64(c.bytes(10)); got != diskSize {
			t.Fatalf("size %d, want %d", got, diskSize)
		}
		if pad := c.bytes(tt.zeroes); !bytes.Equal(pad, make([]byte, tt.zeroes)) {
			t.Fatalf("padding %x", pad)
		}
		if a := c.do(cmdRead, 0, 512, 512); a.code != 0 {
			t.Fatalf("read: error %d", a.code)
		}
	}
	c := greet(t, uri)
	c.send("IHAVEOPT", uint32(optExportName), uint32(2), "no")
	c.ended()
}

func TestContextHoldsForItsExportOnly(t *testing.T) {
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"a": newMemory(diskSize), "b": newMemory(diskSize)})}, "a")
	c := greet(t, uri)
	c.mustOption(optStructured)
	c.structured = true
	c.option(optSetMeta, meta("a", "base:allocation"))
	c.open("b")
	if a := c.do(cmdBlockStatus, 0, 0, 512); a.code != einval {
		t.Fatalf("block status of the other export: error %d, want EINVAL", a.code)
	}
}

func TestRequestsThatMustFail(t *testing.T) {
	disk := newMemory(diskSize).fill()
	readOnly := newMemory(diskSize)
	readOnly.geometry.ReadOnly = true
	coarse := newMemory(diskSize)
	coarse.geometry.BlockSize = 4096
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{
		"disk": disk, "ro": readOnly, "coarse": coarse,
	})}, "")
	for _, tt := range []struct {
		name    string
		export  string
		command uint16
		flags   uint16
		off     uint64
		length  uint32
		want    uint32
	}{
		{"read beyond the end", "disk", cmdRead, 0, diskSize, 512, einval},
		{"read across the end", "disk", cmdRead, 0, diskSize - 512, 1024, einval},
		{"read at the last offset", "disk", cmdRead, 0, 1<<64 - 512, 512, einval},
		{"read that wraps around", "disk", cmdRead, 0, 1<<64 - 512, 1024, einval},
		{"read of nothing", "disk", cmdRead, 0, 0, 0, einval},
		{"read off the block", "disk", cmdRead, 0, 1, 512, 0},
		{"read of half a block", "disk", cmdRead, 0, 0, 256, 0},
		{"read in blocks too small", "coarse", cmdRead, 0, 512, 4096, 0},
		{"bytes across the end", "disk", cmdRead, 0, diskSize - 1, 2, einval},
		{"bytes written across the end", "disk", cmdWrite, 0, diskSize - 1, 2, enospc},
		{"fast zeroes of bytes", "disk", cmdWriteZeroes, flagFastZero, 1, 512, enotsup},
		{"read too long", "disk", cmdRead, 0, 0, 33 << 20, einval},
		{"read too long in one piece", "disk", cmdRead, flagDF, 0, 33 << 20, eoverflow},
		{"read with another's flag", "disk", cmdRead, flagNoHole, 0, 512, einval},
		{"write beyond the end", "disk", cmdWrite, 0, diskSize, 512, enospc},
		{"write too long", "disk", cmdWrite, 0, 0, 33 << 20, einval},
		{"write with another's flag", "disk", cmdWrite, flagDF, 0, 512, einval},
		{"zeroes beyond the end", "disk", cmdWriteZeroes, 0, diskSize, 512, enospc},
		{"fast zeroes that keep space", "disk", cmdWriteZeroes, flagFastZero | flagNoHole, 0, 512, enotsup},
		{"trim beyond the end", "disk", cmdTrim, 0, diskSize, 512, einval},
		{"status beyond the end", "disk", cmdBlockStatus, 0, diskSize, 512, einval},
		{"write to a read-only export", "ro", cmdWrite, 0, 0, 512, eperm},
		{"zeroes to a read-only export", "ro", cmdWriteZeroes, 0, 0, 512, eperm},
		{"trim of a read-only export", "ro", cmdTrim, 0, 0, 512, eperm},
		{"unknown command", "disk", 99, 0, 0, 512, einval},
		{"unknown flag", "disk", cmdRead, 1 << 15, 0, 512, einval},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, strings.Replace(uri, "nbd+unix:///", "nbd+unix:///"+tt.export, 1))
			var payload []byte
			if tt.command == cmdWrite {
				payload = make([]byte, tt.length)
			}
			if a := c.do(tt.command, tt.flags, tt.off, tt.length, payload...); a.code != tt.want {
				t.Errorf("error %d %q, want %d", a.code, a.words, tt.want)
			}
			if a := c.do(cmdRead, 0, 4096, 4096); a.code != 0 {
				t.Errorf("the next read: error %d", a.code)
			}
		})
	}
	t.Run("without structured replies", func(t *testing.T) {
		c := dialSimple(t, strings.Replace(uri, "nbd+unix:///", "nbd+unix:///disk", 1))
		if a := c.do(cmdRead, flagDF, 0, 512); a.code != einval {
			t.Errorf("one piece: error %d, want EINVAL", a.code)
		}
		if a := c.do(cmdBlockStatus, 0, 0, 512); a.code != einval {
			t.Errorf("block status: error %d, want EINVAL", a.code)
		}
		if a := c.do(cmdRead, 0, 512, 512); a.code != 0 || !bytes.Equal(a.data, disk.data[512:1024]) {
			t.Errorf("read: error %d", a.code)
		}
	})
}

func TestHolesStayHoles(t *testing.T) {
	disk := newMemory(diskSize)
	data := bytes.Repeat([]byte{7}, 64<<10)
	disk.write(data, 128<<10)
	disk.write(data[:512], 1<<20)
	c := dial(t, serveDisk(t, disk))
	for _, tt := range []struct {
		name          string
		flags         uint16
		off           uint64
		length        uint32
		holes, chunks int
	}{
		{"a hole", 0, 0, 128 << 10, 128 << 10, 1},
		{"data", 0, 128 << 10, 64 << 10, 0, 1},
		{"hole, data, hole", 0, 64 << 10, 192 << 10, 128 << 10, 3},
		{"in one piece", flagDF, 64 << 10, 192 << 10, 0, 1},
		{"a hole in one piece", flagDF, 0, 64 << 10, 64 << 10, 1},
		{"data at the end", 0, 1<<20 - 8192, 8192 + 512, 8192, 2},
		{"long, on a goroutine", 0, 0, diskSize, diskSize - 128<<10, 5},
		{"a sector of hole", 0, 0, 512, 512, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := c.do(cmdRead, tt.flags, tt.off, tt.length)
			if a.code != 0 || !bytes.Equal(a.data, disk.data[tt.off:tt.off+uint64(tt.length)]) {
				t.Fatalf("error %d, or other bytes than the device's", a.code)
			}
			if a.holes != tt.holes || a.chunks != tt.chunks {
				t.Errorf("%d bytes of holes in %d chunks, want %d in %d", a.holes, a.chunks, tt.holes, tt.chunks)
			}
		})
	}
}

// reserved is a device of zeros that keep their space.
type reserved struct{ *memory }

func (reserved) Extents(_ context.Context, dst []blockdev.Extent, _, n int64, _ int) ([]blockdev.Extent, error) {
	return append(dst, blockdev.Extent{Length: n, State: blockdev.Zeros}), nil
}

func TestBlockStatus(t *testing.T) {
	disk := newMemory(diskSize)
	disk.write(make([]byte, 8192), 64<<10)
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk, "reserved": reserved{disk}})}, "disk")
	c := dial(t, uri)
	if a, want := c.do(cmdBlockStatus, 0, 0, diskSize), []uint32{64 << 10, 3, 8 << 10, 0, diskSize - 72<<10, 3}; !slices.Equal(a.states, want) {
		t.Errorf("states %v, want %v", a.states, want)
	}
	if a, want := c.do(cmdBlockStatus, flagReqOne, 66<<10, 512<<10), []uint32{6 << 10, 0}; !slices.Equal(a.states, want) {
		t.Errorf("first state %v, want %v", a.states, want)
	}
	page := make([]byte, pageSize)
	for off := int64(0); off < diskSize; off += 2 * pageSize { // every second page is data
		disk.write(page, off)
		disk.Zero(t.Context(), off+pageSize, pageSize, false, false)
	}
	total, states := uint32(0), 0
	for total < diskSize {
		a := c.do(cmdBlockStatus, 0, uint64(total), diskSize-total)
		if a.code != 0 || len(a.states) == 0 {
			t.Fatalf("at %d: error %d, %d states", total, a.code, len(a.states))
		}
		for i := 0; i < len(a.states); i += 2 {
			total += a.states[i]
			states++
		}
	}
	if want := diskSize / pageSize; states != want {
		t.Errorf("%d states, want %d", states, want)
	}
	r := dial(t, strings.Replace(uri, "/disk", "/reserved", 1))
	if a, want := r.do(cmdBlockStatus, 0, 0, diskSize), []uint32{diskSize, 2}; !slices.Equal(a.states, want) {
		t.Errorf("zeros that keep their space: %v, want %v", a.states, want)
	}
}

func TestEachCommandReachesTheDevice(t *testing.T) {
	disk := newMemory(diskSize).fill()
	c := dial(t, serveDisk(t, disk))
	page := bytes.Repeat([]byte{9}, pageSize)
	big := bytes.Repeat([]byte{5}, 1<<20)
	for _, step := range []struct {
		command, flags uint16
		off            uint64
		length         uint32
		payload        []byte
		want           []byte
	}{
		{cmdWrite, 0, 0, pageSize, page, page},
		{cmdWrite, flagFUA, pageSize, pageSize, page, page},
		{cmdWrite, 0, 1 << 20, 1 << 20, big, big},
		{cmdFlush, 0, 0, 0, nil, nil},
		{cmdCache, 0, 0, 3 << 20, nil, nil},
		{cmdWriteZeroes, 0, 0, 512, nil, make([]byte, 512)},
		{cmdWriteZeroes, flagNoHole | flagFUA, 1 << 20, 3 << 20, nil, make([]byte, 3<<20)},
	} {
		if a := c.do(step.command, step.flags, step.off, step.length, step.payload...); a.code != 0 {
			t.Fatalf("command %d: error %d %q", step.command, a.code, a.words)
		}
		if step.want == nil {
			continue
		}
		if a := c.do(cmdRead, 0, step.off, step.length); !bytes.Equal(a.data, step.want) {
			t.Fatalf("command %d left other bytes (error %d)", step.command, a.code)
		}
	}
	if a := c.do(cmdTrim, flagFUA, pageSize, pageSize); a.code != 0 || !disk.isHole(pageSize) {
		t.Fatalf("trim: error %d, or no hole", a.code)
	}
	c.send(c.request(1, cmdDisconnect, 0, 0, 0))
	c.ended()
}

// broken fails every call with an error of its own.
type broken struct {
	blockdev.Device
	err error
}

func (b broken) ReadAt(context.Context, []byte, int64) error        { return b.err }
func (b broken) WriteAt(context.Context, []byte, int64, bool) error { return b.err }
func (b broken) Flush(context.Context) error                        { return b.err }

func (b broken) Zero(context.Context, int64, int64, bool, bool) error { return b.err }

func (b broken) TryReadAt([]byte, int64) bool { return false }

func (b broken) TryWriteFrom(io.ReaderAt, int, int64) bool { return false }

func TestDeviceErrorsReachTheClient(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want uint32
	}{
		{content.ErrNoSpace, enospc},
		{content.ErrReadOnly, eperm},
		{content.ErrForbidden, eperm},
		{content.ErrInvalid, einval},
		{content.ErrUnavailable, eio},
		{content.ErrCorrupt, eio},
		{content.ErrFenced, eio},
		{content.ErrClosed, eclose},
		{context.Canceled, eclose},
		{errors.ErrUnsupported, enotsup},
		{io.ErrUnexpectedEOF, eio},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			uri := serveDisk(t, broken{newMemory(diskSize), fmt.Errorf("tried cache, farm, origin: %w", tt.err)})
			for _, c := range []*client{dial(t, uri), dialSimple(t, uri)} {
				for _, command := range []uint16{cmdRead, cmdWrite, cmdFlush, cmdWriteZeroes, cmdCache} {
					var payload []byte
					if command == cmdWrite {
						payload = make([]byte, 512)
					}
					a := c.do(command, 0, 512, 512, payload...)
					if a.code != tt.want {
						t.Errorf("command %d: error %d, want %d", command, a.code, tt.want)
					}
					if c.structured && !strings.Contains(a.words, "tried cache, farm, origin") {
						t.Errorf("command %d: the words are %q", command, a.words)
					}
				}
			}
		})
	}
}

// idler lets others go first whenever it has read.
type idler struct{ *hesitant }

func (d idler) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := d.hesitant.ReadAt(ctx, p, off)
	for range 50 {
		runtime.Gosched()
	}
	return err
}

// TestNeighboursInABlock change their bytes at once, over connections of their own, by
// requests of bytes and of blocks: none loses what it was answered.
func TestNeighboursInABlock(t *testing.T) {
	const rounds, part = 200, 128
	disk := &hesitant{memory: newMemory(1 << 20)}
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": idler{disk}})}, "disk")
	ended := make(chan bool)
	for i := range 4 {
		c := dial(t, uri)
		go func() {
			defer func() { ended <- true }()
			for round := range rounds {
				disk.prompt.Store(round%2 == 0)
				p := bytes.Repeat([]byte{byte(i + 1)}, 512+part) // the end of a block, and a piece of the next
				off := uint64(round*2048 + i*part)
				if c.do(cmdWrite, 0, off, part, p[:part]...).code != 0 || c.do(cmdRead, 0, off, part).data[part-1] != byte(i+1) {
					t.Errorf("neighbour %d lost its bytes in round %d", i, round)
				}
				if i == 0 && c.do(cmdWrite, 0, off+1024, 512, p[:512]...).code != 0 {
					t.Error("a block is refused")
				}
			}
		}()
	}
	for range 4 {
		<-ended
	}
	for round := range rounds {
		for i := range 4 {
			if at := round*2048 + i*part; disk.data[at] != byte(i+1) || disk.data[at+part-1] != byte(i+1) {
				t.Fatalf("round %d: neighbour %d lost its bytes", round, i)
			}
		}
	}
}
