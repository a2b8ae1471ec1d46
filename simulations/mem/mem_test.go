package mem

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// complaints is a Reporter that keeps what it is told.
type complaints []string

func (c *complaints) Helper() {}

func (c *complaints) Errorf(format string, args ...any) {
	*c = append(*c, fmt.Sprintf(format, args...))
}

func TestMisuseIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		misuse func(*Bucket)
		want   string
	}{
		"an immutable object is changed": {func(b *Bucket) {
			_, _ = b.Put(t.Context(), "packs/a", bucket.Bytes([]byte("1")), bucket.Condition{})
			_, _ = b.Put(t.Context(), "packs/a", bucket.Bytes([]byte("1")), bucket.Condition{})
			_, _ = b.Put(t.Context(), "packs/a", bucket.Bytes([]byte("2")), bucket.Condition{})
		}, "other bytes"},
		"a deleted pack is read": {func(b *Bucket) {
			_, _ = b.Put(t.Context(), "packs/a", bucket.Bytes([]byte("1")), bucket.Condition{})
			_ = b.Delete(t.Context(), "packs/a")
			_, _ = b.Get(t.Context(), "packs/a", bucket.Range{})
		}, "was deleted"},
		"a bad key": {func(b *Bucket) { _ = b.Delete(t.Context(), "a//b") }, "a//b"},
	} {
		t.Run(name, func(t *testing.T) {
			var told complaints
			c.misuse(New(&told, Config{}))
			if len(told) != 1 || !strings.Contains(told[0], c.want) {
				t.Fatalf("told %q, want one with %q", told, c.want)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	lost := errors.New("lost")
	var fault Fault
	b := New(t, Config{Fault: func(Call) Fault { return fault }})
	write := func(key, data string) error {
		_, err := b.Put(t.Context(), key, bucket.Bytes([]byte(data)), bucket.IfAbsent())
		return err
	}
	for _, applied := range []bool{false, true} {
		key := fmt.Sprintf("records/%t", applied)
		fault = Fault{lost, applied}
		wantErr(t, write(key, "1234"), lost)
		if applied { // the reply is lost whatever it would have been
			wantErr(t, write(key, "5678"), lost)
		}
		fault = Fault{}
		got, _, err := bucket.ReadAll(t.Context(), b, key, 100)
		if applied && string(got) != "1234" || !applied && !errors.Is(err, content.ErrNotFound) {
			t.Fatalf("applied %t: %q, %v", applied, got, err)
		}
		if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("1234")), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		fault = Fault{lost, applied}
		o, err := b.Get(t.Context(), key, bucket.Range{})
		if applied {
			got, err = io.ReadAll(o.Body)
			if string(got) != "12" {
				t.Fatalf("%q came of a body that breaks", got)
			}
		}
		wantErr(t, err, lost)
		wantErr(t, b.Delete(t.Context(), key), lost)
		if left := len(b.Keys(key)); left == 1 == applied {
			t.Fatalf("applied %t: %d objects after a delete", applied, left)
		}
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
