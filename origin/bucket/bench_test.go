package bucket_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// packSize is about that of a pack.
const packSize = 32 << 20

// bench measures what a node does with an origin: it writes packs and records,
// and reads runs.
func bench(b *testing.B, in bucket.Bucket) {
	pack := bucket.Bytes(pattern(packSize))
	b.Run("PutPack", func(b *testing.B) {
		b.SetBytes(packSize)
		for i := 0; b.Loop(); i++ {
			if _, err := in.Put(b.Context(), fmt.Sprintf("packs/%d", i%8), pack, bucket.Condition{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	if _, err := in.Put(b.Context(), "packs/read", pack, bucket.Condition{}); err != nil {
		b.Fatal(err)
	}
	read := func(b *testing.B, i int) {
		o, err := in.Get(b.Context(), "packs/read", bucket.Range{Offset: int64(i) % (packSize / content.RunSize) * content.RunSize, Length: content.RunSize})
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, o.Body); n != content.RunSize || err != nil || o.Body.Close() != nil {
			b.Fatal(n, err)
		}
	}
	b.Run("GetRun", func(b *testing.B) {
		b.SetBytes(content.RunSize)
		for i := 0; b.Loop(); i++ {
			read(b, i)
		}
	})
	b.Run("GetRunsAtOnce", func(b *testing.B) {
		b.SetBytes(content.RunSize)
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				read(b, i)
			}
		})
	})
	b.Run("CommitRecord", func(b *testing.B) {
		info, err := in.Put(b.Context(), "records/bench", bucket.Bytes([]byte{0}), bucket.Condition{})
		for i := 0; b.Loop(); i++ {
			if err != nil {
				b.Fatal(err)
			}
			info, err = in.Put(b.Context(), "records/bench", bucket.Bytes(fmt.Appendf(nil, "%01000d", i)), bucket.IfMatch(info.ETag))
		}
	})
}
