package index

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// A mark lies beside the index objects, so that importers list both at once.
const (
	suspectSuffix = ".suspect"
	suspectMagic  = "grange-suspect/1\n"
)

// Suspect marks a pack, of which a frame was read that is not what the pack's own
// directory says. From then on no member's word for the pack counts, and importers read
// what they reuse of it first: content that is imported again is stored anew where it is
// damaged. A false mark costs them those reads and nothing else, so whoever may write to
// the bucket may set one. It stays when there is one.
func Suspect(ctx context.Context, to bucket.Bucket, id pack.ID) error {
	if err := putOnce(ctx, to, string(content.KeyIndexes)+string(id)+suspectSuffix, []byte(suspectMagic)); err != nil {
		return fmt.Errorf("mark pack %s as suspect: %w", id, err)
	}
	return nil
}
