package seed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// book is what a seed remembers of what went out in a month, on its disk. It is replaced
// whole. As CBOR it is an array:
//
//	magic    text  "grange seed 2"
//	month    text  as "2006-01"
//	served   int   in bytes, that it was allowed to send when this was written: it may
//	               have sent less
//	relayed  int   in bytes
//	peers    map   uint64 of whom was served -> the last day of the month, 1 to 31
//	images   map   text of what was served -> bytes
type book struct {
	_               struct{} `cbor:",toarray"`
	Magic, Month    string
	Served, Relayed int64
	Peers           map[uint64]uint8
	Images          map[string]int64
}

const (
	bookMagic = "grange seed 2"
	// bookMax bounds the file, peersMax whom are told apart in it, and imagesMax what: some
	// hundred KiB, written now and then.
	bookMax   = 1 << 20
	peersMax  = 16 << 10
	imagesMax = 256

	monthForm = "2006-01"
)

func (b *book) out() int64 { return b.Served + b.Relayed }

// turn begins a month, if it is later than that of the book. One that is earlier, as where
// the clock was set back, is none: what goes out counts for the latest.
func (b *book) turn(month string) (begun bool) {
	if month <= b.Month {
		return false
	}
	*b = book{Magic: bookMagic, Month: month, Peers: map[uint64]uint8{}, Images: map[string]int64{}}
	return true
}

// decodeBook reads the file; what can't be one is content.ErrCorrupt.
func decodeBook(codec *content.Codec, data []byte) (b book, err error) {
	if len(data) > bookMax {
		return b, fmt.Errorf("%w: %d bytes", content.ErrCorrupt, len(data))
	}
	if err := codec.Unmarshal(data, &b); err != nil || b.Magic != bookMagic {
		return b, fmt.Errorf("%w: %w", content.ErrCorrupt, errors.Join(err, errors.New("it is no book of a seed")))
	}
	_, err = time.Parse(monthForm, b.Month)
	if err != nil || b.Served < 0 || b.Relayed < 0 || b.out() < 0 || b.Peers == nil || b.Images == nil || len(b.Peers) > peersMax || len(b.Images) > imagesMax+1 {
		return b, fmt.Errorf("%w: the month %.10q, %d bytes served, %d relayed, %d peers and %d images", content.ErrCorrupt, b.Month, b.Served, b.Relayed, len(b.Peers), len(b.Images))
	}
	return b, nil
}

// readBook reads the file; one that is not there is the empty book.
func readBook(codec *content.Codec, path string) (b book, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		b, err = decodeBook(codec, data)
	}
	if err != nil {
		return b, fmt.Errorf("what this seed has sent is in %s, which can't be read: %w; without the file it counts anew from nothing", path, err)
	}
	return b, nil
}
