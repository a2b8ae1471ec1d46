package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// meshFormat is the version of everything that the bucket holds.
	meshFormat = 1
	// meshSizeMax bounds the object, in bytes.
	meshSizeMax = 1 << 10
)

type meshWire struct {
	Mesh   trust.PublicKey `json:"mesh"`
	Format int             `json:"format"`
}

// ClaimMesh makes the bucket the mesh's, or checks that it is already. A bucket
// of another mesh is ErrConflict, one of a newer format ErrUnavailable. Of two
// meshes that claim at once, one gets it. A lost reply is settled by reading.
func ClaimMesh(ctx context.Context, b bucket.Bucket, mesh trust.PublicKey) error {
	body, err := json.Marshal(meshWire{mesh, meshFormat})
	if err != nil {
		return fmt.Errorf("claim the origin: %w", err)
	}
	for range commitTries {
		if err = CheckMesh(ctx, b, mesh); !errors.Is(err, content.ErrNotFound) {
			return err
		}
		_, err = b.Put(ctx, content.KeyMesh, bucket.Bytes(append(body, '\n')), bucket.IfAbsent())
		if err == nil {
			return nil
		}
		if !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown) {
			break
		}
	}
	return fmt.Errorf("claim the origin: %w", err)
}

// CheckMesh checks that the bucket is the mesh's; ErrNotFound means that nobody
// has claimed it.
func CheckMesh(ctx context.Context, b bucket.Bucket, mesh trust.PublicKey) error {
	if _, err := bucket.ReadChecked(ctx, b, content.KeyMesh, meshSizeMax, func(text []byte, _ bucket.Info) (struct{}, error) {
		return struct{}{}, checkMesh(text, mesh)
	}); err != nil {
		return fmt.Errorf("read %s of the origin: %w", content.KeyMesh, err)
	}
	return nil
}

func checkMesh(text []byte, mesh trust.PublicKey) error {
	var w meshWire
	if err := json.Unmarshal(text, &w); err != nil {
		return fmt.Errorf("%w: %w", content.ErrCorrupt, err)
	}
	switch {
	case w.Mesh != mesh:
		return fmt.Errorf("the origin: %w: it belongs to mesh %s, and this node is of mesh %s; give --origin an empty bucket or prefix", content.ErrConflict, w.Mesh, mesh)
	case w.Format > meshFormat:
		return fmt.Errorf("the origin: %w: its format is %d, and this version reads up to %d; upgrade", content.ErrUnavailable, w.Format, meshFormat)
	}
	return nil
}
