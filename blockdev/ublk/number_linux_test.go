package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

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

// TestNumberUsedAgain gives the number of a disk to another device again and again, while
// others read whatever disk has it, by the page cache: who has opened one reads bytes of one
// device alone, and none of one that was removed before.
func TestNumberUsedAgain(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	d, err := s.Add(t.Context(), -1, 'a', full('a'))
	if err != nil {
		t.Fatal(err)
	}
	path, number := d.Path(), d.Number()
	var oldest atomic.Int32 // the letter of the device that has the number, or had it last
	oldest.Store('a')
	ctx, enough := context.WithCancel(t.Context())
	var group errgroup.Group
	var read atomic.Int64
	for range 3 {
		group.Go(func() error {
			for p := make([]byte, 1<<20); ctx.Err() == nil; {
				before := byte(oldest.Load())
				f, err := os.Open(path)
				if err != nil { // between two of them
					continue
				}
				for off := 0; off < len(p); off += 64 << 10 {
					n, err := f.ReadAt(p[off:][:64<<10], int64(off))
					if err != nil {
						n = 0 // it was removed
					}
					if first := p[0]; off == 0 && n > 0 && first < before || len(bytes.Trim(p[off:][:n], string(first))) > 0 {
						return errors.Join(fmt.Errorf("opened when %c had the number: it reads %c and then %c", before, first, p[off]), f.Close())
					}
					read.Add(int64(n))
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for letter := 'b'; letter < 'b'+rune(soak.Of(4, 25)); letter++ {
		for before := read.Load(); read.Load() < before+3<<20; { // all have
			runtime.Gosched()
		}
		if err := d.Stop(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		oldest.Store(letter)
		for d, err = s.Add(t.Context(), number, uint32(letter), full(byte(letter))); err == nil && d.Number() != number; { // it is not free yet
			if err = d.Stop(t.Context(), true); err == nil {
				d, err = s.Add(t.Context(), number, uint32(letter), full(byte(letter)))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	enough()
	if err := errors.Join(group.Wait(), d.Stop(t.Context(), true)); err != nil {
		t.Error(err)
	}
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
