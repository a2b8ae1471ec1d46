package seed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// book is what a seed remembers of what went out, on its disk. It is replaced whole. As
// CBOR it is an array:
//
//	magic   text   "grange seed 1"
//	months  array  of [text "2006-01", int served, int relayed], in bytes, rising,
//	               of which the last is the one that counts
//	peers   map    uint64 of whom was served in the last month -> the day of it, 1 to 31
//	images  map    text of what was served in it -> bytes
//
// The bytes of the last month are those that it was allowed to send when it was written,
// which may be more than it did.
type book struct {
	_      struct{} `cbor:",toarray"`
	Magic  string
	Months []month
	Peers  map[uint64]uint8
	Images map[string]int64
}

type month struct {
	_               struct{} `cbor:",toarray"`
	Name            string
	Served, Relayed int64
}

func (m month) out() int64 { return m.Served + m.Relayed }

const (
	bookMagic = "grange seed 1"
	// bookMax bounds the file, peersMax whom are told apart in it, imagesMax what, and
	// monthsMax how many months it goes back: some hundred KiB, written now and then.
	bookMax   = 1 << 20
	peersMax  = 16 << 10
	imagesMax = 256
	monthsMax = 12

	monthForm = "2006-01"
)

func emptyBook() book {
	return book{Magic: bookMagic, Peers: map[uint64]uint8{}, Images: map[string]int64{}}
}

// decodeBook reads the file; what can't be one is content.ErrCorrupt.
func decodeBook(codec *content.Codec, data []byte) (b book, err error) {
	if len(data) > bookMax {
		return b, fmt.Errorf("%w: %d bytes", content.ErrCorrupt, len(data))
	}
	if err := codec.Unmarshal(data, &b); err != nil || b.Magic != bookMagic {
		return b, fmt.Errorf("%w: %w", content.ErrCorrupt, errors.Join(err, errors.New("it is no book of a seed")))
	}
	before := ""
	for _, m := range b.Months {
		if _, err := time.Parse(monthForm, m.Name); err != nil || m.Name <= before || m.Served < 0 || m.Relayed < 0 || m.out() < 0 {
			return b, fmt.Errorf("%w: month %.10q after %q", content.ErrCorrupt, m.Name, before)
		}
		before = m.Name
	}
	if len(b.Months) > monthsMax || len(b.Peers) > peersMax || len(b.Images) > imagesMax+1 {
		return b, fmt.Errorf("%w: it is too long", content.ErrCorrupt)
	}
	empty := emptyBook()
	if b.Peers == nil {
		b.Peers = empty.Peers
	}
	if b.Images == nil {
		b.Images = empty.Images
	}
	return b, nil
}

func readBook(codec *content.Codec, path string) (book, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return emptyBook(), nil
	}
	var b book
	if err == nil {
		b, err = decodeBook(codec, data)
	}
	if err != nil {
		return b, fmt.Errorf("what this seed has sent is in %s, which can't be read: %w; without the file it counts anew from nothing", path, err)
	}
	return b, nil
}

// turn begins a month, if it is later than all before. One that is earlier, as where the
// clock was set back, is none: what goes out counts for the latest.
func (b *book) turn(name string) {
	if n := len(b.Months); n > 0 && name <= b.Months[n-1].Name {
		return
	}
	b.Months = append(b.Months, month{Name: name})
	b.Months = b.Months[max(0, len(b.Months)-monthsMax):]
	clear(b.Peers)
	clear(b.Images)
}

func (b *book) now() *month { return &b.Months[len(b.Months)-1] }
