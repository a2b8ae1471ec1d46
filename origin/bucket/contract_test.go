package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// contract checks that what open returns, an empty bucket each time, keeps to what
// bucket.Bucket says.
func contract(t *testing.T, open func(t *testing.T) bucket.Bucket) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, bucket.Bucket)
	}{
		{"WhatIsPutComesBack", comesBack},
		{"AbsentObjects", absent},
		{"ObjectsAreReplacedWhole", replaced},
		{"IfAbsent", ifAbsent},
		{"IfMatch", ifMatch},
		{"ListsInOrder", lists},
		{"ListsPages", pages},
		{"BadKeys", badKeys},
		{"EndedContext", endedContext},
		{"OneOfManyWritersWins", oneWins},
		{"Linearizable", linearizable},
		{"Probe", func(t *testing.T, b bucket.Bucket) { ok(t, bucket.Probe(t.Context(), b)) }},
		{"ProbeOrder", func(t *testing.T, b bucket.Bucket) { ok(t, bucket.ProbeOrder(t.Context(), b)) }},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
	t.Run("Reads", func(t *testing.T) {
		b := open(t)
		reads(t, b, b)
	})
}

// reads checks the reading half: what is put to one bucket is read through the
// other, which shows the same objects.
func reads(t *testing.T, write, read bucket.Bucket) {
	data := pattern(1 << 20)
	store(t, write, "packs/ranges", data, bucket.Condition{})
	store(t, write, "empty", nil, bucket.Condition{})
	size := int64(len(data))
	for _, c := range []struct {
		name string
		r    bucket.Range
		want []byte
		err  error
	}{
		{"all", bucket.Range{}, data, nil},
		{"to the end", bucket.Range{Offset: 1000}, data[1000:], nil},
		{"from the start", bucket.Range{Length: 10}, data[:10], nil},
		{"in the middle", bucket.Range{Offset: 4096, Length: 65536}, data[4096 : 4096+65536], nil},
		{"cut at the end", bucket.Range{Offset: size - 5, Length: 100}, data[size-5:], nil},
		{"the last byte", bucket.Range{Offset: size - 1, Length: 1}, data[size-1:], nil},
		{"a suffix", bucket.Range{Offset: -100}, data[size-100:], nil},
		{"the start of a suffix", bucket.Range{Offset: -100, Length: 7}, data[size-100 : size-93], nil},
		{"a suffix longer than the object", bucket.Range{Offset: -2 * size}, data, nil},
		{"at the end", bucket.Range{Offset: size, Length: 1}, nil, content.ErrInvalid},
		{"outside", bucket.Range{Offset: size + 10, Length: 10}, nil, content.ErrInvalid},
		{"of negative length", bucket.Range{Length: -1}, nil, content.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := read.Get(t.Context(), "packs/ranges", c.r)
			if c.err != nil {
				wantErr(t, err, c.err)
				return
			}
			ok(t, err)
			if got := drain(t, o); !bytes.Equal(got, c.want) {
				t.Fatalf("%d bytes came, want %d, or others", len(got), len(c.want))
			}
			if o.Size != size || o.Key != "packs/ranges" || o.Modified.IsZero() || o.Now.IsZero() {
				t.Fatalf("info %+v of an object of %d bytes", o.Info, size)
			}
		})
	}
	t.Run("an empty object", func(t *testing.T) {
		got, info, err := bucket.ReadAll(t.Context(), read, "empty", 10)
		if err != nil || len(got) != 0 || info.Size != 0 {
			t.Fatalf("%q, %+v, %v", got, info, err)
		}
		_, err = read.Get(t.Context(), "empty", bucket.Range{Length: 1})
		wantErr(t, err, content.ErrInvalid)
	})
	t.Run("more than the limit", func(t *testing.T) {
		_, _, err := bucket.ReadAll(t.Context(), read, "packs/ranges", size-1)
		wantErr(t, err, content.ErrCorrupt)
	})
	t.Run("an absent object", func(t *testing.T) {
		_, err := read.Get(t.Context(), "packs/none", bucket.Range{})
		wantErr(t, err, content.ErrNotFound)
		_, err = read.Get(t.Context(), "packs/none", bucket.Range{Offset: -10})
		wantErr(t, err, content.ErrNotFound)
	})
}

func comesBack(t *testing.T, b bucket.Bucket) {
	for i, size := range []int{0, 1, 511, 4096, 1<<20 + 3} {
		key, data := fmt.Sprintf("a/b-%d", i), pattern(size)
		info := store(t, b, key, data, bucket.Condition{})
		got, read, err := bucket.ReadAll(t.Context(), b, key, 1<<21)
		ok(t, err)
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back of %d, or others", len(got), size)
		}
		if info.ETag == "" || info.ETag != read.ETag || info.Size != int64(size) || info.Key != key {
			t.Fatalf("put answered %+v, get %+v", info, read)
		}
		for listed, err := range b.List(t.Context(), key, "") {
			if ok(t, err); listed.ETag != info.ETag || listed.Size != info.Size || listed.Modified.IsZero() {
				t.Fatalf("put answered %+v, list %+v", info, listed)
			}
		}
		ok(t, b.Delete(t.Context(), key))
		_, err = b.Get(t.Context(), key, bucket.Range{})
		wantErr(t, err, content.ErrNotFound)
	}
}

func absent(t *testing.T, b bucket.Bucket) {
	ok(t, b.Delete(t.Context(), "none"))
	ok(t, b.Delete(t.Context(), "no/such/folder"))
	if got := keys(t, b, "", ""); len(got) != 0 {
		t.Fatalf("an empty bucket lists %v", got)
	}
	if got := keys(t, b, "no/such/", ""); len(got) != 0 {
		t.Fatalf("an absent prefix lists %v", got)
	}
}

// replaced overwrites an object while it is read: each reader sees one version,
// whole.
func replaced(t *testing.T, b bucket.Bucket) {
	const size = 256 << 10
	version := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, size) }
	first := store(t, b, "records/x", version(0), bucket.Condition{})
	o, err := b.Get(t.Context(), "records/x", bucket.Range{})
	ok(t, err)
	drain(t, o)
	writing := make(chan error, 1)
	go func() {
		for i := range 10 {
			if _, err := b.Put(t.Context(), "records/x", bucket.Bytes(version(i+1)), bucket.Condition{}); err != nil {
				writing <- err
				return
			}
		}
		writing <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-writing:
			ok(t, err)
			done = true
		default:
		}
		got, _, err := bucket.ReadAll(t.Context(), b, "records/x", size)
		ok(t, err)
		if len(got) != size || bytes.Count(got, got[:1]) != size {
			t.Fatalf("a mix of versions, or %d bytes", len(got))
		}
	}
	_, last, err := bucket.ReadAll(t.Context(), b, "records/x", size)
	if err != nil || last.ETag == first.ETag {
		t.Fatalf("other content has the same ETag %s, error %v", last.ETag, err)
	}
}

func ifAbsent(t *testing.T, b bucket.Bucket) {
	first := store(t, b, "records/a", []byte("1"), bucket.IfAbsent())
	refused(t, b, "records/a", []byte("2"), bucket.IfAbsent())
	holds(t, b, "records/a", "1", first.ETag)
	ok(t, b.Delete(t.Context(), "records/a"))
	second := store(t, b, "records/a", []byte("3"), bucket.IfAbsent())
	holds(t, b, "records/a", "3", second.ETag)
}

func ifMatch(t *testing.T, b bucket.Bucket) {
	refused(t, b, "records/a", []byte("0"), bucket.IfMatch(`"0123456789abcdef0123456789abcdef"`))
	first := store(t, b, "records/a", []byte("1"), bucket.IfAbsent())
	second := store(t, b, "records/a", []byte("2"), bucket.IfMatch(first.ETag))
	refused(t, b, "records/a", []byte("3"), bucket.IfMatch(first.ETag))
	holds(t, b, "records/a", "2", second.ETag)
	store(t, b, "records/a", []byte("4"), bucket.Condition{})
	refused(t, b, "records/a", []byte("5"), bucket.IfMatch(second.ETag))
	ok(t, b.Delete(t.Context(), "records/a"))
	refused(t, b, "records/a", []byte("6"), bucket.IfMatch(second.ETag))
}

func lists(t *testing.T, b bucket.Bucket) {
	all := []string{"a", "b-1/x", "b.1", "b/1", "b/2/x", "b/2/y", "b/20", "b0", "b@3", "c/d/e/f"}
	slices.Sort(all)
	for _, i := range []int{3, 9, 0, 5, 1, 8, 2, 7, 4, 6} {
		store(t, b, all[i], []byte(all[i]), bucket.Condition{})
	}
	for _, c := range []struct{ prefix, after string }{
		{"", ""}, {"b", ""}, {"b/", ""}, {"b/2", ""}, {"b/2/", ""}, {"b/2/x", ""}, {"c/d", ""}, {"d", ""}, {"b/2/y/", ""},
		{"", "a"}, {"", "b.0"}, {"", "b/1"}, {"", "b/2"}, {"", "b/2/"}, {"", "b/2/x"}, {"b/", "b/2/y"}, {"b/2", "b/2/x"}, {"b", "a"}, {"", "z"}, {"b/", "c"},
	} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, c.prefix) && key > c.after {
				want = append(want, key)
			}
		}
		if got := keys(t, b, c.prefix, c.after); !slices.Equal(got, want) {
			t.Errorf("List(%q, %q) = %v, want %v", c.prefix, c.after, got, want)
		}
	}
	for info, err := range b.List(t.Context(), "", "") { // a consumer may stop
		if ok(t, err); info.Key != "a" {
			t.Fatalf("first %q", info.Key)
		}
		break
	}
}

// pages lists more objects than one page of S3 holds.
func pages(t *testing.T, b bucket.Bucket) {
	const total, writers = bucket.PageSize + 50, 8
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			var err error
			for i := w; i < total && err == nil; i += writers {
				_, err = b.Put(t.Context(), fmt.Sprintf("many/%05d", i), bucket.Bytes([]byte("x")), bucket.Condition{})
			}
			errs <- err
		}()
	}
	for range writers {
		ok(t, <-errs)
	}
	got := keys(t, b, "many/", "")
	if len(got) != total || !slices.IsSorted(got) || got[total-1] != fmt.Sprintf("many/%05d", total-1) {
		t.Fatalf("%d keys, want %d in order", len(got), total)
	}
	if got := keys(t, b, "many/", fmt.Sprintf("many/%05d", total-2)); len(got) != 1 {
		t.Fatalf("after the last but one: %v", got)
	}
}

func badKeys(t *testing.T, b bucket.Bucket) {
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", ".tmp/x", "a b", "a\\b", "a\x00", "ä", "a?b", strings.Repeat("a", bucket.KeyMax+1), strings.Repeat("a", 300)} {
		_, err := b.Put(t.Context(), key, bucket.Bytes([]byte("x")), bucket.Condition{})
		wantErr(t, err, content.ErrInvalid)
		_, err = b.Get(t.Context(), key, bucket.Range{})
		wantErr(t, err, content.ErrInvalid)
		wantErr(t, b.Delete(t.Context(), key), content.ErrInvalid)
	}
}

func endedContext(t *testing.T, b bucket.Bucket) {
	store(t, b, "a", []byte("x"), bucket.Condition{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Get(ctx, "a", bucket.Range{})
	wantErr(t, err, context.Canceled)
	_, err = b.Put(ctx, "a", bucket.Bytes([]byte("y")), bucket.Condition{})
	wantErr(t, err, context.Canceled)
	wantErr(t, b.Delete(ctx, "a"), context.Canceled)
	for _, err := range b.List(ctx, "", "") {
		wantErr(t, err, context.Canceled)
	}
	holds(t, b, "a", "x", "")
}

// pattern returns bytes that differ at each place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return b
}

func store(t testing.TB, b bucket.Bucket, key string, data []byte, cond bucket.Condition) bucket.Info {
	t.Helper()
	info, err := b.Put(t.Context(), key, bucket.Bytes(data), cond)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return info
}

func refused(t testing.TB, b bucket.Bucket, key string, data []byte, cond bucket.Condition) {
	t.Helper()
	_, err := b.Put(t.Context(), key, bucket.Bytes(data), cond)
	wantErr(t, err, bucket.ErrPrecondition)
	wantErr(t, err, content.ErrConflict)
}

func holds(t testing.TB, b bucket.Bucket, key, want, etag string) {
	t.Helper()
	got, info, err := bucket.ReadAll(t.Context(), b, key, 1<<20)
	if err != nil || string(got) != want || etag != "" && info.ETag != etag {
		t.Fatalf("%s holds %q with tag %s, want %q with %s; error %v", key, got, info.ETag, want, etag, err)
	}
}

func keys(t testing.TB, b bucket.Bucket, prefix, after string) []string {
	t.Helper()
	var out []string
	for info, err := range b.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatalf("list %q after %q: %v", prefix, after, err)
		}
		out = append(out, info.Key)
	}
	return out
}

func drain(t testing.TB, o *bucket.Object) []byte {
	t.Helper()
	b, err := io.ReadAll(o.Body)
	if err = errors.Join(err, o.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
