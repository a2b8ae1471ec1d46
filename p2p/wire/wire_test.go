package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
)

// frame splits an encoded frame and decodes its payload.
func frame(b []byte) (Header, Message, error) {
	h, err := ParseHeader([HeaderSize]byte(b))
	if err != nil {
		return Header{}, nil, err
	}
	if len(b) != HeaderSize+h.Length {
		return Header{}, nil, fmt.Errorf("%w: %d bytes, the header says %d", content.ErrCorrupt, len(b), HeaderSize+h.Length)
	}
	m, err := Decode(h, b[HeaderSize:])
	return h, m, err
}

func messages() []Message {
	root := content.Sum([]byte("root"))
	claim, at := Claim{content.VolumeID{1, 2, 15: 16}, 7, 0x1122334455667788}, Place{7, 5, 4096}
	return []Message{
		Hello{LaneBulk, []byte("chain")},
		Want{Root: root, Level: 0, Priority: 3, Fetch: true, Passed: true, Indexes: []uint64{0, 1, 2, 9, 300, 301, IndexMax}},
		Want{Root: root, Level: content.LevelMax, Indexes: []uint64{7}},
		Want{Root: root, Priority: 3, Trace: Trace{0: 1, 23: 9}, Indexes: []uint64{7}},
		Cancel{},
		Absent{Indexes: []uint64{4, 5, 70000}},
		Absent{[]uint64{1}, true},
		Queued{17},
		Progress{},
		Refer{Peer: "\x00\x09peer's id"},
		Refer{"\x00\x09peer's id", []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/4001/quic-v1"), ma.StringCast("/ip6/2001:db8::1/tcp/4001")}},
		Unknown{},
		Introduce{[]byte("envelope")},
		Subscribe{root},
		Bitmap{false, []byte("part ")},
		Bitmap{true, []byte("rest")},
		Call{"resolve", []byte("body")},
		Answer{[]byte("answer")},
		ErrorOf(fmt.Errorf("read x: %w", content.ErrNotFound)),
		Ack{1 << 20},
		Promise{Claim: claim, Base: content.Position{Number: 3, Seq: 900}, Name: "web1", Ancestors: []content.VolumeID{{7}, {8}}, Begin: true, Whole: 950},
		Promise{Claim: claim},
		Extend{claim, at, 1 << 26, 1001, []byte("bytes")},
		Read{claim, at, PieceMax},
		Cut{claim, at, 1001},
		Drop{claim, content.Position{Number: 9, Seq: 1 << 40}, false},
		Drop{Claim: claim, All: true},
		Status{claim},
		Held{claim, content.Position{Number: 3, Seq: 900}, 1500 * time.Millisecond, []content.SegmentRef{{Volume: content.VolumeID{1}, Epoch: 6, After: content.Position{Number: 3, Seq: 900}, Through: content.Position{Number: 4, Seq: 1000}, Bytes: 1 << 26}, {Volume: content.VolumeID{1}, Epoch: 7, After: content.Position{Number: 4, Seq: 1000}, Through: content.Position{Number: 5, Seq: 1000}, Bytes: 64}}},
		Held{Claim: claim},
	}
}

func TestGolden(t *testing.T) {
	var out strings.Builder
	for _, m := range messages() {
		fmt.Fprintf(&out, "%T %s\n", m, hex.EncodeToString(Append(nil, 0x01020304, m)))
	}
	d := Data{Index: 5, Raw: 131072, Stored: 99, Page: 7, Codec: CodecZstd, Spare: 0x01020304, Ack: true}
	fmt.Fprintf(&out, "%T %s\n", d, hex.EncodeToString(d.Append(nil, 0x01020304)))
	golden.Check(t, "frames.golden", []byte(out.String())) // members of different versions would not understand each other
}

func TestMessagesSurviveTheWire(t *testing.T) {
	for _, m := range messages() {
		h, got, err := frame(Append(nil, 7, m))
		if err != nil || h.ID != 7 || !reflect.DeepEqual(got, m) {
			t.Errorf("%#v came back as %#v, id %d, %v", m, got, h.ID, err)
		}
	}
}

func TestDataSurvivesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Data{
			Index: rapid.Uint64Range(0, IndexMax).Draw(t, "index"),
			Raw:   rapid.IntRange(2, BodySizeMax).Draw(t, "raw"),
			Page:  rapid.IntRange(0, PageSizeMax).Draw(t, "page"),
			Codec: rapid.SampledFrom([]Codec{CodecRaw, CodecZstd}).Draw(t, "codec"),
			Spare: Spare(rapid.Uint32().Draw(t, "spare")),
			Ack:   rapid.Bool().Draw(t, "ack"),
		}
		d.Stored = d.Raw
		if d.Codec == CodecZstd {
			d.Stored = rapid.IntRange(1, d.Raw-1).Draw(t, "stored")
		}
		b := d.Append(nil, 9)
		h, err := ParseHeader([HeaderSize]byte(b))
		if err != nil || len(b) != HeaderSize+DataSize || h.Length != d.Size()-HeaderSize {
			t.Fatalf("header %+v of %d bytes: %v", h, len(b), err)
		}
		if got, err := DecodeData(h, [DataSize]byte(b[HeaderSize:])); err != nil || got != d {
			t.Fatalf("got %+v, %v; want %+v", got, err, d)
		}
	})
}

func TestIndexesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SliceOfNDistinct(rapid.Uint64Range(0, 4000), 1, IndexesMax, rapid.ID[uint64]).Draw(t, "set")
		sortIndexes(set)
		got, err := decodeIndexes(appendIndexes(nil, set))
		if err != nil || !reflect.DeepEqual(got, set) {
			t.Fatalf("%v came back as %v, %v", set, got, err)
		}
	})
}

func sortIndexes(s []uint64) {
	for i := range s {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

func TestRefused(t *testing.T) {
	want := Append(nil, 1, Want{Indexes: []uint64{1}})
	change := func(at int, v byte) []byte {
		b := bytes.Clone(want)
		b[at] = v
		return b
	}
	for name, b := range map[string][]byte{
		"type 0":                  change(4, 0),
		"type out of range":       change(4, byte(typeEnd)),
		"unknown flag":            change(5, 0x80),
		"length over the limit":   change(0, 0x7f),
		"length under the limit":  change(3, 1),
		"level over the limit":    change(HeaderSize+32, content.LevelMax+1),
		"priority over the limit": change(HeaderSize+33, byte(PriorityGuest)+1),
		"no ranges":               change(HeaderSize+35, 0),
		"more ranges than bytes":  change(HeaderSize+35, 2),
		"range of length 0":       change(HeaderSize+37, 0),
		"varint without end":      change(HeaderSize+37, 0x80),
		"foreign magic":           append(Header{Type: TypeHello, Length: 14}.Append(nil), "grange-y\x03\x00\x00\x00\x00\x00"...),
		"other version":           append(Header{Type: TypeHello, Length: 14}.Append(nil), "grange-x\x01\x00\x00\x00\x00\x00"...),
		"unknown lane":            append(Header{Type: TypeHello, Length: 14}.Append(nil), "grange-x\x03\x04\x00\x00\x00\x00"...),
		"method past the end":     append(Header{Type: TypeCall, Length: 3}.Append(nil), "\x05ab"...),
		"method without name":     append(Header{Type: TypeCall, Length: 3}.Append(nil), "\x00ab"...),
		"kind out of range":       append(Header{Type: TypeError, Length: 1}.Append(nil), byte(kindEnd)),
		"name over its bytes":     append(Header{Type: TypePromise, Length: promiseSize + 2}.Append(nil), append(make([]byte, promiseSize-1), 3, 'a', 'b')...),
		"half an ancestor":        append(Header{Type: TypePromise, Length: promiseSize + 9}.Append(nil), append(make([]byte, promiseSize-1), 1, 'a', 1, 2, 3, 4, 5, 6, 7, 8)...),
		"extended by nothing":     append(Header{Type: TypeExtend, Length: extendSize}.Append(nil), make([]byte, extendSize)...),
		"piece too large":         Header{Type: TypeExtend, Length: extendSize + PieceMax + 1}.Append(nil),
		"offset below zero":       append(Header{Type: TypeCut, Length: claimSize + placeSize + 8}.Append(nil), bytes.Repeat([]byte{255}, claimSize+placeSize+8)...),
		"read of nothing":         append(Header{Type: TypeRead, Length: claimSize + placeSize + 4}.Append(nil), make([]byte, claimSize+placeSize+4)...),
		"half a segment":          append(Header{Type: TypeHeld, Length: heldSize + 5}.Append(nil), make([]byte, heldSize+5)...),
		"segment below zero":      append(Header{Type: TypeHeld, Length: heldSize + heldSegmentSize}.Append(nil), bytes.Repeat([]byte{255}, heldSize+heldSegmentSize)...),
		"error not in UTF-8":      append(Header{Type: TypeError, Length: 2}.Append(nil), 0, 0xff),
	} {
		if _, m, err := frame(b); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s: got %#v, %v; want ErrCorrupt", name, m, err)
		}
	}
	for name, d := range map[string]Data{
		"no bytes":              {Raw: 0, Stored: 0},
		"raw of another length": {Raw: 5, Stored: 6},
		"zstd that gains none":  {Raw: 5, Stored: 5, Codec: CodecZstd},
		"unknown codec":         {Raw: 5, Stored: 4, Codec: 2},
		"body over the limit":   {Raw: BodySizeMax + 1, Stored: 5, Codec: CodecZstd},
		"page over the limit":   {Raw: 5, Stored: 5, Page: PageSizeMax + 1},
		"index over the limit":  {Index: IndexMax + 1, Raw: 5, Stored: 5},
	} {
		if err := d.validate(); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s: got %v; want ErrCorrupt", name, err)
		}
	}
}

func TestErrorKeepsItsCategory(t *testing.T) {
	for k := KindNotFound; k <= KindClosed; k++ {
		if got := ErrorOf(fmt.Errorf("wrapped: %w", k.Sentinel())); got.Kind != k {
			t.Errorf("%v became kind %d, want %d", k.Sentinel(), got.Kind, k)
		}
	}
	long := ErrorOf(errors.New(strings.Repeat("ä", TextMax)))
	if _, m, err := frame(Append(nil, 1, long)); err != nil || len(m.(Error).Text) > TextMax {
		t.Errorf("a long text: %v, %v", m, err)
	}
}

func TestProtocolIDCarriesTheMesh(t *testing.T) {
	a, b := trust.NewPrivateKey().Public(), trust.NewPrivateKey().Public()
	if got, want := ProtocolID(a), "/grange/"+a.String()+"/exchange/3"; got != want || got == ProtocolID(b) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// FuzzDecode holds that no frame makes the decoder panic, and that each frame
// that is accepted is the one encoding of what it says.
func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		f.Add(Append(nil, 1, m))
	}
	f.Add(append(Data{Raw: 2, Stored: 2}.Append(nil, 1), 1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h, err := ParseHeader([HeaderSize]byte(b))
		if err != nil || h.Length != len(b)-HeaderSize {
			return
		}
		if h.Type == TypeData {
			d, err := DecodeData(h, [DataSize]byte(b[HeaderSize:]))
			if again := d; err == nil && (!bytes.HasPrefix(b, again.Append(nil, h.ID)) || d.Size() != len(b)) {
				t.Fatalf("%+v does not encode to %x", d, b)
			}
			return
		}
		m, err := Decode(h, b[HeaderSize:])
		if err != nil {
			return
		}
		if again := Append(nil, h.ID, m); !bytes.Equal(again, b) {
			t.Fatalf("%#v encodes to %x, was read from %x", m, again, b)
		}
	})
}

func BenchmarkDataHead(b *testing.B) {
	buf := make([]byte, 0, 64)
	d := Data{Index: 1, Raw: 131072, Stored: 131072}
	b.ReportAllocs()
	for b.Loop() {
		buf = d.Append(buf[:0], 1)
	}
}
