package transport

import (
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// TestAStalledConnectionFails lets a peer fall silent in the middle of an answer.
func TestAStalledConnectionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		c := conn{here}
		go func() {
			for range 5 { // slowly, but it goes on
				<-time.After(stallMax * 2 / 3)
				there.Write([]byte("x"))
			}
		}()
		start := time.Now()
		p := make([]byte, 1)
		for range 5 {
			if _, err := c.Read(p); err != nil {
				t.Fatalf("after %s: %v", time.Since(start), err)
			}
		}
		start = time.Now()
		if _, err := c.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != stallMax {
			t.Errorf("silence: %v after %s", err, time.Since(start))
		}
		start = time.Now()
		if _, err := c.Write(p); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != stallMax {
			t.Errorf("nobody reads: %v after %s", err, time.Since(start))
		}
	})
}

func TestRanges(t *testing.T) {
	for header, r := range map[string]bucket.Range{"": {}, "bytes=5-": {Offset: 5}, "bytes=5-6": {Offset: 5, Length: 2}, "bytes=0-1": {Length: 2}, "bytes=-7": {Offset: -7}} {
		if got, err := Header(r); err != nil || got != header {
			t.Errorf("%+v: %q, %v, want %q", r, got, err, header)
		}
	}
	if _, err := Header(bucket.Range{Length: -1}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a negative length: %v", err)
	}
	length, size, err := part(bucket.Range{Offset: -7, Length: 3}, "bytes 93-99/100")
	if err != nil || length != 3 || size != 100 {
		t.Errorf("%d of %d, %v", length, size, err)
	}
	Tune(new(http.Transport))
}
