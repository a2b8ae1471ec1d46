package files

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// Sorted is a listing in the order of a walk, each path once, whose files have their bytes in a working file.
type Sorted struct {
	spool *os.File
	end   int64 // of the spool
	room  func(n int64) error
	paths map[string]*spooled
	order []string
}

// spooled is what one or more paths name.
type spooled struct {
	Entry
	parts []part
}

// part is some bytes of a file, and where they are in the spool.
type part struct{ off, length, at int64 }

// Sort reads a listing whose order is any. The working file is made in temp; room is asked before about n bytes are
// written to it, and its error ends that. Close removes it.
func Sort(ctx context.Context, l Listing, temp string, room func(n int64) error) (*Sorted, error) {
	f, err := os.CreateTemp(temp, "sorted-*")
	if err != nil {
		return nil, err
	}
	s := &Sorted{spool: f, room: room, paths: map[string]*spooled{}}
	if err = os.Remove(f.Name()); err == nil {
		err = l.Each(ctx, s.take)
	}
	if err != nil {
		return nil, cmp.Or(err, f.Close())
	}
	for path := range s.paths {
		s.order = append(s.order, path)
	}
	slices.SortFunc(s.order, walked)
	return s, nil
}

// walked compares paths as a walk gives them: the top first, and what is in a folder before what comes behind it.
func walked(a, b string) int {
	if a == "." || b == "." {
		return cmp.Compare(min(1, len(strings.TrimPrefix(a, "."))), min(1, len(strings.TrimPrefix(b, "."))))
	}
	return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
}

// take notes an entry, and has its bytes in the spool.
func (s *Sorted) take(e *Entry) error {
	if e.Same != "" {
		of, ok := s.paths[e.Same]
		if !ok || of.Is(unix.S_IFDIR) {
			return fmt.Errorf("%w: %q is to be another name of %q, which does not come before it", content.ErrInvalid, e.Path, e.Same)
		}
		s.paths[e.Path] = of
		return nil
	}
	n := &spooled{Entry: *e}
	n.Data, n.Held = nil, nil
	s.paths[e.Path] = n
	if e.Data == nil {
		return nil
	}
	return e.Data(func(p []byte, off int64) error {
		if err := s.room(int64(len(p))); err != nil {
			return err
		}
		if _, err := s.spool.WriteAt(p, s.end); err != nil {
			return err
		}
		n.parts = append(n.parts, part{off, int64(len(p)), s.end})
		s.end += int64(len(p))
		return nil
	})
}

// Each implements Listing.
func (s *Sorted) Each(ctx context.Context, do func(*Entry) error) error {
	first, links := map[*spooled]string{}, map[*spooled]int{}
	for _, n := range s.paths {
		links[n]++
	}
	buf := make([]byte, ReadAtOnce)
	for _, path := range s.order {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := s.paths[path]
		e := n.Entry
		if e.Path = path; first[n] != "" {
			e.Same = first[n]
		} else if first[n] = path; links[n] > 1 {
			e.Links = links[n]
		}
		if e.Same == "" && e.Is(unix.S_IFREG) {
			e.Data = func(yield func([]byte, int64) error) error { return s.data(n, buf, yield) }
		}
		if err := do(&e); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sorted) data(n *spooled, buf []byte, yield func([]byte, int64) error) error {
	for _, x := range n.parts {
		for done := int64(0); done < x.length; {
			p := buf[:min(int64(len(buf)), x.length-done)]
			if _, err := s.spool.ReadAt(p, x.at+done); err != nil {
				return err
			}
			if err := yield(p, x.off+done); err != nil {
				return err
			}
			done += int64(len(p))
		}
	}
	return nil
}

// Close frees the working file.
func (s *Sorted) Close() error { return s.spool.Close() }
