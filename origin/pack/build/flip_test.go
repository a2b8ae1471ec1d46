package build

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

// flipping flips a bit in the middle of the first answer to each request, as a line does
// that checks nothing.
type flipping struct {
	bucket.Bucket
	mu   sync.Mutex // guards seen
	seen map[string]bool
}

func (f *flipping) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := f.Bucket.Get(ctx, key, r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[key] {
		return o, nil
	}
	f.seen[key] = true
	b, err := io.ReadAll(o.Body)
	b[len(b)-len(b)/8-1] ^= 1
	o.Body = io.NopCloser(bytes.NewReader(b))
	return o, err
}

// TestABitThatFlipsOnTheWay is read again, whatever is read.
func TestABitThatFlipsOnTheWay(t *testing.T) {
	m, h, _ := onePack(t)
	id := h.Node.Pack
	for what, read := range map[string]func(b bucket.Bucket, r *pack.Reader) error{
		"manifest":  func(_ bucket.Bucket, r *pack.Reader) error { _, err := r.ReadManifest(t.Context(), h); return err },
		"directory": func(_ bucket.Bucket, r *pack.Reader) error { _, err := r.ReadDirectory(t.Context(), id); return err },
		"footer":    func(b bucket.Bucket, _ *pack.Reader) error { _, err := pack.ReadFooter(t.Context(), b, id); return err },
		"node": func(_ bucket.Bucket, r *pack.Reader) error {
			_, err := r.ReadNode(t.Context(), h.Scope, h.Root.Shape().Depth(), h.Top())
			return err
		},
		"index": func(b bucket.Bucket, _ *pack.Reader) error {
			x, err := index.Load(t.Context(), index.Config{Bucket: b, Scopes: []content.Scope{h.Scope}})
			if err == nil && x.Len() == 0 {
				t.Error("the index knows nothing of a pack whose directory came damaged once")
			}
			return err
		},
	} {
		b := &flipping{Bucket: m, seen: map[string]bool{}}
		if err := read(b, pack.NewReader(b)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAnEmptyObjectIsNoPack, whatever its name; imports go on beside it.
func TestAnEmptyObjectIsNoPack(t *testing.T) {
	m, h, _ := onePack(t)
	stray := h.Node.Pack[:len(h.Node.Pack)-1] + "0"
	if stray == h.Node.Pack {
		stray = h.Node.Pack[:len(h.Node.Pack)-1] + "1"
	}
	if _, err := m.Put(t.Context(), stray.Key(), bucket.Bytes(nil), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	m.forget()
	x, err := index.Load(t.Context(), index.Config{Bucket: m, Scopes: []content.Scope{h.Scope}})
	if err != nil || x.Len() == 0 {
		t.Errorf("%v", err)
	}
}
