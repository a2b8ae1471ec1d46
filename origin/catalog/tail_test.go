package catalog

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
	"github.com/grangemesh/grange/simulations/mem"
)

func goldenTail() content.SegmentRef {
	return content.SegmentRef{Volume: content.VolumeID{1, 15: 2}, Epoch: 7, After: content.Position{Number: 3, Seq: 40}, Through: content.Position{Number: 5, Seq: 99}, Bytes: 1 << 20, Sum: [16]byte{8, 15: 9}}
}

func TestGoldenTails(t *testing.T) {
	end := goldenTail()
	end.Through, end.Bytes, end.Sum = end.After, 0, [16]byte{}
	for name, ref := range map[string]content.SegmentRef{"tail": goldenTail(), "tail.end": end} {
		b := EncodeTail(ref)
		golden.Check(t, name, b)
		if got, err := DecodeTail(b); err != nil || got != ref {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

func FuzzTail(f *testing.F) {
	golden.Seeds(f, "tail", "tail.end")
	f.Fuzz(func(t *testing.T, b []byte) {
		ref, err := DecodeTail(b)
		if err == nil && !bytes.Equal(EncodeTail(ref), b) {
			t.Errorf("%x is read as %+v", b, ref)
		}
		if err != nil && !errors.Is(err, content.ErrCorrupt) {
			t.Error(err)
		}
	})
}

// row stores a chain of three tails, one of them large, the end of an epoch where a taker was slower than the writer, and
// a tail that comes behind. It returns the chain as a record names it, and its objects.
func row(t *testing.T, in bucket.Bucket) (content.SegmentRef, []string) {
	t.Helper()
	var chain []content.SegmentRef
	var keys []string
	put := func(ref content.SegmentRef, body []byte) {
		if _, err := in.Put(t.Context(), ref.TailKey(), bucket.Bytes(append(EncodeTail(ref), body...)), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	at := content.Position{Number: 0x10, Seq: 40}
	for i, n := range []int{10, 1 << 20, 3, 8} {
		body := bytes.Repeat([]byte{byte(i + 1)}, n)
		ref := content.SegmentRef{Volume: content.VolumeID{9}, Epoch: 7, After: at, Through: content.Position{Number: at.Number + 2, Seq: at.Seq + 5}, Bytes: int64(n), Sum: content.HalfSum(body)}
		put(ref, body)
		chain, keys, at = append(chain, ref), append(keys, ref.TailKey()), ref.Through
	}
	end := content.SegmentRef{Volume: content.VolumeID{9}, Epoch: 7, After: content.Position{Number: 0x11, Seq: 41}}
	end.Through = end.After
	put(end, nil)
	return JoinTails(chain[:3]), keys[:3]
}

// segment stores a segment with an object of its own.
func segment(t *testing.T, in bucket.Bucket) (content.SegmentRef, []string) {
	t.Helper()
	body := bytes.Repeat([]byte("segment"), 100)
	ref := content.SegmentRef{Volume: content.VolumeID{9}, Epoch: 7, Through: content.Position{Number: 5, Seq: 99}, Bytes: int64(len(body)), Sum: content.HalfSum(body)}
	if _, err := in.Put(t.Context(), ref.Key(), bucket.Bytes(body), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	return ref, []string{ref.Key()}
}

// TestSegmentsAreChecked: whatever is wrong with any object that a segment lies in is found.
func TestSegmentsAreChecked(t *testing.T) {
	for name, store := range map[string]func(*testing.T, bucket.Bucket) (content.SegmentRef, []string){"an object": segment, "tails": row} {
		for damage, c := range map[string]struct {
			change func(b []byte) []byte
			want   error
		}{
			"none":          {func(b []byte) []byte { return b }, nil},
			"missing":       {func([]byte) []byte { return nil }, content.ErrNotFound},
			"too short":     {func(b []byte) []byte { return b[:len(b)-1] }, content.ErrCorrupt},
			"too long":      {func(b []byte) []byte { return append(b, 0) }, content.ErrCorrupt},
			"flipped first": {func(b []byte) []byte { b[0] ^= 1; return b }, content.ErrCorrupt},
			"flipped last":  {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, content.ErrCorrupt},
		} {
			t.Run(name+", "+damage, func(t *testing.T) {
				for n := range 3 {
					in := mem.New(t, mem.Config{MayReadDeleted: true})
					ref, keys := store(t, in)
					key := keys[n%len(keys)]
					b, _, err := bucket.ReadAll(t.Context(), in, key, 2<<20)
					if err == nil {
						err = in.Delete(t.Context(), key)
					}
					if b = c.change(slices.Clone(b)); err == nil && b != nil {
						_, err = in.Put(t.Context(), key, bucket.Bytes(b), bucket.IfAbsent())
					}
					if err != nil {
						t.Fatal(err)
					}
					if err := CheckSegment(t.Context(), in, ref); !errors.Is(err, c.want) {
						t.Fatalf("object %d: %v, want %v", n, err, c.want)
					}
				}
			})
		}
	}
}

// TestDoubtOfASegmentIsNoDamage: a store that does not answer says nothing of it.
func TestDoubtOfASegmentIsNoDamage(t *testing.T) {
	for _, applied := range []bool{false, true} {
		var away bool
		in := mem.New(t, mem.Config{Fault: func(mem.Call) (f mem.Fault) {
			if away {
				f = mem.Fault{Err: content.ErrUnavailable, Applied: applied}
			}
			return f
		}})
		one, _ := segment(t, in)
		many, _ := row(t, in)
		away = true
		for _, ref := range []content.SegmentRef{one, many} {
			if err := CheckSegment(t.Context(), in, ref); !errors.Is(err, content.ErrUnavailable) || errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%+v: %v", ref, err)
			}
		}
	}
}
