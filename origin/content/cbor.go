package content

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Codec encodes our CBOR formats, and decodes them strictly. It writes the
// dag-cbor subset of CBOR: map keys in canonical order, shortest integers, no
// indefinite lengths, tag 42 alone. Build one with NewCodec and share it: it is
// safe for concurrent use.
type Codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// cborArrayMax bounds arrays and maps in untrusted input; the largest list we
// write is a manifest's packs.
const (
	cborArrayMax  = 1 << 20
	cborNestedMax = 16
)

// NewCodec returns the codec of every CBOR format in grange.
func NewCodec() *Codec {
	opts := cbor.CanonicalEncOptions()
	opts.IndefLength = cbor.IndefLengthForbidden
	enc, err := opts.EncMode()
	if err != nil {
		panic(fmt.Sprintf("content: CBOR encoder options: %v", err))
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxArrayElements: cborArrayMax,
		MaxMapPairs:      cborArrayMax,
		MaxNestedLevels:  cborNestedMax,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("content: CBOR decoder options: %v", err))
	}
	return &Codec{enc, dec}
}

// Marshal encodes v.
func (c *Codec) Marshal(v any) ([]byte, error) { return c.enc.Marshal(v) }

// Unmarshal decodes b, all of it, into v; anything else is ErrCorrupt. Fields
// that v does not know are ignored, so that a later version may add some.
func (c *Codec) Unmarshal(b []byte, v any) error {
	if err := c.dec.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}
