package catalog

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	collectionMagic = "grange-collection/1"

	// CollectionName is the name of the one record that says who collects the origin's garbage.
	CollectionName = "origin"
	// reportMax bounds what it says of the last run, in bytes.
	reportMax = 2 << 10
)

// Collection is the body of the record of who collects garbage, or did last. Each that begins takes the next epoch, and
// whoever finds another than its own there stops. All times are by the store's clock, in milliseconds since 1970.
//
// Encoded as a dag-cbor map: magic "grange-collection/1", and the fields by the names below.
type Collection struct {
	Epoch  uint64          `cbor:"epoch"`
	Holder trust.PublicKey `cbor:"holder"`
	Began  int64           `cbor:"began"`
	// Seen is when the holder last said that it is at it; Ended when it had ended, 0 while it has not.
	Seen  int64 `cbor:"seen"`
	Ended int64 `cbor:"ended"`
	// Report is what the run before has done, as package garbage encodes it.
	Report []byte `cbor:"report"`
}

type collectionWire struct {
	Magic string `cbor:"magic"`
	Collection
}

// EndedAt is when it had ended; zero for not yet.
func (x Collection) EndedAt() time.Time { return fromMillis(x.Ended) }

// Encode returns the body's canonical CBOR. What no collection may have is ErrInvalid.
func (x Collection) Encode(c *content.Codec) ([]byte, error) {
	if err := x.check(); err != nil {
		return nil, fmt.Errorf("collection: %w: %w", content.ErrInvalid, err)
	}
	x.Report = append([]byte{}, x.Report...)
	return c.Marshal(collectionWire{collectionMagic, x})
}

// DecodeCollection reads an encoded body; anything but the one encoding of a valid one is ErrCorrupt.
func DecodeCollection(c *content.Codec, b []byte) (Collection, error) {
	var w collectionWire
	err := c.Unmarshal(b, &w)
	if err == nil && w.Magic != collectionMagic {
		err = fmt.Errorf("magic %.20q", w.Magic)
	}
	if err == nil {
		err = isEncodingOf(w.Collection.Encode, c, b)
	}
	if err != nil {
		return Collection{}, fmt.Errorf("collection: %w: %w", content.ErrCorrupt, err)
	}
	return w.Collection, nil
}

func (x Collection) check() error {
	if x.Epoch == 0 || x.Epoch > epochMax || x.Holder == (trust.PublicKey{}) || min(x.Began, x.Seen, x.Ended) < 0 || len(x.Report) > reportMax {
		return fmt.Errorf("epoch %d of %s, from %d to %d, and %d bytes of report", x.Epoch, x.Holder, x.Began, x.Ended, len(x.Report))
	}
	return nil
}
