// Package convert turns what operators have (raw and virtual disk files,
// directories, tar files) into a disk to be published, and images back into
// files.
//
// Raw disks are read in place. Those of other formats are read by a child in a
// fence, and what is compressed is inflated by one: see foreign. A disk stands
// alone: none may name another file of the host. What was cut, or is written to
// while it is read, is refused: an end and a cut never look alike.
//
// A directory or tar file becomes an ext4 file system. A newer version of one is
// written into a copy of the previous disk, by the same code that fills a new one
// (it compares with what is there), so that only what changed is new: a file system
// made afresh shares almost nothing with the one before. As root the kernel writes
// it, elsewhere debugfs does, afresh; the kernel is given no file system but those that
// were made here. What can't be had of a tree is said.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// Sink takes the chunks of a disk in rising order, as pack.Builder does. Raw is
// exactly one chunk long and the caller's again when it returns.
type Sink func(ctx context.Context, index uint64, raw []byte) error

// readSize is how much of a disk is read at once, in bytes, from multiples of it on:
// the largest cluster of the formats with compression, so that each is inflated once.
const readSize = 2 << 20

// piece is some whole chunks of a disk.
type piece struct {
	off int64
	b   []byte
}

// Chunks reads a disk's data and hands it to sink, chunk by chunk, while it reads on. Holes are passed over;
// a chunk of zeros may be handed on. Progress is given the offset that was reached, in bytes; it may be nil.
func Chunks(ctx context.Context, d Disk, chunkSize int, sink Sink, progress func(off int64)) error {
	group, within := errgroup.WithContext(ctx)
	pieces, free := make(chan piece), make(chan []byte, 2)
	for range cap(free) {
		free <- make([]byte, max(readSize, chunkSize))
	}
	group.Go(func() error {
		defer close(pieces)
		return readPieces(within, d, int64(chunkSize), free, pieces)
	})
	group.Go(func() error {
		for p := range pieces {
			for i := 0; i < len(p.b); i += chunkSize {
				off := p.off + int64(i)
				if err := sink(within, uint64(off)/uint64(chunkSize), p.b[i:i+chunkSize]); err != nil {
					return err
				}
				if progress != nil {
					progress(off + int64(chunkSize))
				}
			}
			free <- p.b[:cap(p.b)]
		}
		return nil
	})
	err := group.Wait()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// readPieces reads a disk's data into buffers that are free.
func readPieces(ctx context.Context, d Disk, chunkSize int64, free chan []byte, out chan<- piece) error {
	for next := int64(0); ; { // next is the offset of the first chunk not read
		start, end, err := d.NextData(next)
		if err == io.EOF { // itself: what else ends like one is cut
			return nil
		}
		if err != nil {
			return fmt.Errorf("read source at %d: %w", next, err)
		}
		for next = max(next, start/chunkSize*chunkSize); next < end; {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			size := int64(len(buf))
			upTo := min((next/size+1)*size, (end+chunkSize-1)/chunkSize*chunkSize)
			buf = buf[:upTo-next]
			if err := readFull(d, buf, next); err != nil {
				return err
			}
			select {
			case out <- piece{next, buf}:
			case <-ctx.Done():
				return ctx.Err()
			}
			next = upTo
		}
	}
}

// readFull fills buf from off; what is beyond the end of the disk is zeros.
func readFull(d Disk, buf []byte, off int64) error {
	inside := buf[:min(int64(len(buf)), d.Size()-off)]
	clear(buf[len(inside):])
	if n, err := d.ReadAt(inside, off); n < len(inside) {
		return fmt.Errorf("read source at %d: %w: %w", off, content.ErrCorrupt, err)
	}
	return nil
}

// Image is one to be read back.
type Image interface {
	Root() content.Root
	// NextData returns the first run of chunks at or after index that are not
	// holes; io.EOF when there is none.
	NextData(ctx context.Context, index uint64) (start, end uint64, err error)
	// ReadChunk fills p with the chunk at index, from off on.
	ReadChunk(ctx context.Context, index uint64, off int, p []byte) error
}

// readersPerCore of Export: the source fetches, so several wait at once.
const readersPerCore = 4

// Export replaces what is in f by an image; holes stay holes. Progress is given the bytes written so far; it
// may be nil. A failed export leaves f unfinished: the caller writes beside and renames.
func Export(ctx context.Context, image Image, f *os.File, progress func(n int64)) error {
	root := image.Root()
	for _, size := range []int64{0, root.Size} { // emptied first: holes are not written
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readersPerCore * runtime.GOMAXPROCS(0))
	size := int64(root.ChunkSize)
	var bufs scratch.Pool
	var mu sync.Mutex // guards written, and has progress called once at a time
	var written int64
	write := func(index uint64) error {
		buf := bufs.Get(int(size))
		defer bufs.Put(buf)
		if err := image.ReadChunk(ctx, index, 0, *buf); err != nil {
			return err
		}
		off := int64(index) * size
		n, err := f.WriteAt((*buf)[:min(size, root.Size-off)], off)
		mu.Lock()
		defer mu.Unlock()
		if written += int64(n); progress != nil {
			progress(written)
		}
		return err
	}
	err := eachChunk(ctx, image, func(index uint64) { group.Go(func() error { return write(index) }) })
	if err = errors.Join(err, group.Wait()); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func eachChunk(ctx context.Context, image Image, do func(index uint64)) error {
	for next := uint64(0); ; {
		start, end, err := image.NextData(ctx, next)
		if err == io.EOF { // itself: what else ends like one is cut
			return nil
		}
		if err != nil {
			return err
		}
		for next = start; next < end; next++ {
			if ctx.Err() != nil {
				return nil // the group knows why
			}
			do(next)
		}
	}
}

// saidMax bounds how much of a tool's output an error repeats, in bytes.
const saidMax = 1 << 10

// run executes a tool; its error carries the end of what the tool said.
func run(ctx context.Context, name string, args ...string) error {
	out, err := tool(ctx, name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	said := strings.TrimSpace(string(out))
	if len(said) > saidMax {
		said = "…" + said[len(said)-saidMax:]
	}
	return fmt.Errorf("%s: %w: %s", name, err, said)
}

// tool is a command that speaks English and is found where only root looks, too.
func tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	return cmd
}
