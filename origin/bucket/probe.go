package bucket

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// Probe finds out whether writing to a bucket is safe: whether it takes writes
// and honours both conditions. A store that ignores them would let two writers
// believe that each had won; it is content.ErrReadOnly, as is one that refuses
// writes. It costs five requests.
func Probe(ctx context.Context, b Bucket) error {
	var name [8]byte
	rand.Read(name[:])
	key := string(content.KeyProbes) + hex.EncodeToString(name[:])
	first, err := b.Put(ctx, key, Bytes([]byte("first")), IfAbsent())
	if errors.Is(err, content.ErrForbidden) {
		return fmt.Errorf("%w: probe for writing: %w", content.ErrReadOnly, err)
	}
	if err != nil {
		return fmt.Errorf("probe for writing: %w", err)
	}
	err = errors.Join(
		ignored(ctx, b, key, IfAbsent(), "if-none-match"),
		ignored(ctx, b, key, IfMatch(`"00000000000000000000000000000000"`), "if-match"),
	)
	if err == nil {
		if _, err = b.Put(ctx, key, Bytes([]byte("second")), IfMatch(first.ETag)); err != nil {
			err = fmt.Errorf("probe for conditional writing: %w", err)
		}
	}
	return errors.Join(err, b.Delete(context.WithoutCancel(ctx), key))
}

// ignored fails when a write goes through although its condition does not hold.
func ignored(ctx context.Context, b Bucket, key string, cond Condition, name string) error {
	_, err := b.Put(ctx, key, Bytes([]byte("wrong")), cond)
	switch {
	case err == nil:
		return fmt.Errorf("%w: the store ignores %s, so two writers could both believe that they had won; use one that honours conditional writes", content.ErrReadOnly, name)
	case errors.Is(err, ErrPrecondition):
		return nil
	}
	return fmt.Errorf("probe for conditional writing: %w", err)
}
