// Package swept does by hand, for tests, to some objects of an origin what a collection of garbage does to what it has found
// dead twice.
package swept

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// batch is a garbage.Batch as it is encoded.
type batch struct {
	Magic     string   `cbor:"magic"`
	Since     int64    `cbor:"since"`
	Epoch     uint64   `cbor:"epoch"`
	Condemned bool     `cbor:"condemned"`
	Delete    []string `cbor:"delete"`
	Repack    []string `cbor:"repack"`
}

// Tombstone puts tombstones of objects, condemned or not, and returns the key of the batch.
func Tombstone(t testing.TB, at bucket.Bucket, condemned bool, keys ...string) string {
	t.Helper()
	id, err := pack.NewID(content.Mesh(), time.Unix(1_795_000_000, 0), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := content.NewCodec().Marshal(batch{"grange-garbage/1", 1, 1, condemned, slices.Sorted(slices.Values(keys)), []string{}})
	if err != nil {
		t.Fatal(err)
	}
	key := string(content.KeyGarbage) + string(id) + ".batch"
	if _, err := at.Put(context.WithoutCancel(t.Context()), key, bucket.Bytes(b), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	return key
}

// Collect condemns objects and deletes them, and then the batch.
func Collect(t testing.TB, at bucket.Bucket, keys ...string) {
	t.Helper()
	for _, key := range append(keys, Tombstone(t, at, true, keys...)) {
		if err := at.Delete(context.WithoutCancel(t.Context()), key); err != nil {
			t.Fatal(err)
		}
	}
}

// Condemned are the keys that a batch says are deleted.
func Condemned(t testing.TB, at bucket.Bucket, key string) []string {
	t.Helper()
	if b := read(t, at, key); b.Condemned {
		return b.Delete
	}
	return nil
}

// Listed are those that it has.
func Listed(t testing.TB, at bucket.Bucket, key string) []string {
	t.Helper()
	return read(t, at, key).Delete
}

func read(t testing.TB, at bucket.Bucket, key string) (b batch) {
	t.Helper()
	raw, _, err := bucket.ReadAll(context.WithoutCancel(t.Context()), at, key, 1<<20)
	if err == nil {
		err = content.NewCodec().Unmarshal(raw, &b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packs are the keys of all packs there, but for some.
func Packs(t testing.TB, at bucket.Bucket, but ...string) (keys []string) {
	t.Helper()
	for info, err := range at.List(context.WithoutCancel(t.Context()), string(content.KeyPacks), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(but, info.Key) {
			keys = append(keys, info.Key)
		}
	}
	return keys
}
