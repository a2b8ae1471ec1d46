package ublk_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/simulations/soak"
)

// full returns a device that is full of a byte.
func full(b byte) *memory {
	m := newMemory(1 << 20)
	for i := range m.data {
		m.data[i] = b
	}
	return m
}

// reads reads all of a file by the page cache, and returns what is not want of it.
func reads(t *testing.T, f *os.File, want byte) []byte {
	t.Helper()
	p := make([]byte, 1<<20)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return bytes.Trim(p, string(want))
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestNumberOfAnotherDevice gives the number of a disk, which the kernel has cached, to
// another device: while nobody serves the first and its user waits, and after it was
// removed. Nobody reads a byte of the other.
func TestNumberOfAnotherDevice(t *testing.T) {
	for range soak.Of(1, 20) { // an emulated round takes long
		old, leave := serve(t, ublk.Config{})
		d, err := old.Add(t.Context(), -1, 'A', full('a'))
		if err != nil {
			t.Fatal(err)
		}
		user := open(t, d.Path())
		if left := reads(t, user, 'a'); len(left) > 0 {
			t.Fatalf("it reads %q", left[:1])
		}
		leave()
		s, leave := serve(t, ublk.Config{})
		other, err := s.Add(t.Context(), d.Number(), 'B', full('b'))
		if err != nil || other.Number() == d.Number() {
			t.Fatalf("the disk of one device became another's: %v", err)
		}
		if err := s.Remove(t.Context(), d.Number(), 'B', true); err != nil {
			t.Error(err)
		}
		again, err := s.Add(t.Context(), d.Number(), 'A', full('a'))
		if err != nil || again.Number() != d.Number() {
			t.Fatalf("taken up by its own: %v", err)
		}
		shell(t, "", "echo 1 >/proc/sys/vm/drop_caches")
		if left := reads(t, user, 'a'); len(left) > 0 {
			t.Errorf("the user of the first reads %q", left[:1])
		}
		if left := reads(t, open(t, other.Path()), 'b'); len(left) > 0 {
			t.Errorf("the second has %q", left[:1])
		}
		if err := again.Stop(t.Context(), true); err != nil { // cached, and open
			t.Fatal(err)
		}
		third, err := s.Add(t.Context(), d.Number(), 'C', full('c'))
		if err != nil {
			t.Fatal(err)
		}
		if left := reads(t, open(t, third.Path()), 'c'); len(left) > 0 {
			t.Errorf("the third, number %d after %d, has %q", third.Number(), d.Number(), left[:1])
		}
		p := make([]byte, 4096)
		if n, err := user.ReadAt(p, 0); err == nil && len(bytes.Trim(p[:n], "a")) > 0 {
			t.Errorf("the user of a disk that is gone reads %q", p[:1])
		}
		if err := user.Close(); err != nil {
			t.Error(err)
		}
		fourth, err := s.Add(t.Context(), d.Number(), 'D', full('d'))
		if err != nil {
			t.Fatal(err)
		}
		if left := reads(t, open(t, fourth.Path()), 'd'); len(left) > 0 {
			t.Errorf("the fourth, number %d after %d, has %q", fourth.Number(), d.Number(), left[:1])
		}
		for _, d := range []*ublk.Disk{other, third, fourth} {
			if err := d.Stop(t.Context(), true); err != nil {
				t.Error(err)
			}
		}
		leave()
	}
}
