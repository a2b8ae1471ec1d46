package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// PacksMax bounds the packs of a list that are remembered, some 40 bytes each; of those that are more each is asked for.
const PacksMax = 4 << 20

// Packs is what a list of a bucket says of its packs: see ListPacks.
type Packs struct {
	from  bucket.Bucket
	sizes map[[16]byte]uint32 // by half the sum of the ID
}

// ListPacks lists the packs of a bucket.
func ListPacks(ctx context.Context, from bucket.Bucket) (Packs, error) {
	p := Packs{from, make(map[[16]byte]uint32)}
	for info, err := range from.List(ctx, string(content.KeyPacks), "") {
		if err != nil {
			return Packs{}, fmt.Errorf("list packs: %w", err)
		}
		if id, err := pack.ParseKey(info.Key); err == nil && len(p.sizes) < PacksMax && info.Size <= pack.SizeMax {
			p.sizes[content.HalfSum([]byte(id))] = uint32(info.Size)
		}
	}
	return p, nil
}

// size returns the length of a pack; one that is not there is content.ErrNotFound. What the list has not came later, or
// was too much: the bucket is asked.
func (p Packs) size(ctx context.Context, id pack.ID) (int64, error) {
	if n, ok := p.sizes[content.HalfSum([]byte(id))]; ok {
		return int64(n), nil
	}
	o, err := p.from.Get(ctx, id.Key(), bucket.Range{Length: 1})
	if errors.Is(err, content.ErrInvalid) {
		return 0, nil // it is empty
	}
	if err != nil {
		return 0, err
	}
	return o.Size, o.Body.Close()
}
