// Package foreign lets programs of others read files that are not trusted: a disk in
// a format of QEMU's is opened by a qemu-nbd, compressed files by their tools. Each
// runs in a fence: no network, no other processes, no files but programs and what it is
// handed, limits of memory and time; what goes wrong there is an error here, whatever the
// file holds.
//
// A disk is read over NBD from the child, and the child reads the file over NBD from
// us, so that it needs no right to any file. That shows where it reads past the end
// of the file, too: QEMU itself takes what is missing for zeros.
package foreign

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"

	"github.com/grangemesh/grange/origin/content"
)

// File is what a child is given to read.
type File interface {
	io.ReaderAt
	Size() int64
}

// Disk is an image that a child reads. Not for concurrent use.
type Disk struct {
	*client
	child   *child
	file    *server
	serving sync.WaitGroup
	unwatch func() bool
	known   []extent // what is known of the disk's ranges, rising
}

// Open starts a child that reads file with a block driver of QEMU's. It ends with
// ctx, or with Close. A file that needs others, is damaged or cut is ErrInvalid;
// what shows later fails reads. Warn is told what the child's fence lacks.
func Open(ctx context.Context, file File, driver string, warn func(string)) (*Disk, error) {
	shape, err := examine(file, driver)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", content.ErrInvalid, err)
	}
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		return nil, fmt.Errorf("%w: it takes qemu-nbd to read it; install the package qemu-utils, or bring the disk as raw", errors.ErrUnsupported)
	}
	d := &Disk{client: &client{}, file: &server{file: file, shape: shape}}
	if err := d.launch(ctx, driver, warn); err != nil {
		return nil, fmt.Errorf("read it with qemu-nbd: %w", err)
	}
	d.serving.Go(d.file.serve)
	d.unwatch = context.AfterFunc(ctx, func() { d.conn.Close() })
	if err := d.handshake(); err != nil {
		if err = d.because(err); ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("%w: %w", content.ErrInvalid, err), d.Close())
	}
	return d, nil
}

// launch starts the child, with a connection each way. When it returns the child's
// ends are the child's alone, so that they break when it ends.
func (d *Disk) launch(ctx context.Context, driver string, warn func(string)) error {
	// By a name that nobody can guess, as that which an older kernel makes up next: who is
	// first in the queue is shown the disk.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@" + rand.Text()})
	if err != nil {
		return err
	}
	defer listener.Close()
	queue, err := listener.File()
	if err != nil {
		return err
	}
	defer queue.Close()
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	conn, err := net.DialUnix("unix", nil, listener.Addr().(*net.UnixAddr))
	if err == nil {
		d.child, err = start(ctx, task{
			size: d.file.file.Size(), files: []*os.File{queue, theirs}, args: []string{"qemu-nbd", "--read-only", graph(driver)}, warn: warn,
		})
	}
	if err != nil {
		ours.Close()
		if conn != nil {
			conn.Close()
		}
		return err
	}
	d.conn, d.file.conn = conn, ours
	return nil
}

// graph is how qemu-nbd is told to open the image: as this format, alone, from descriptor 4, which is theirs.
func graph(driver string) string {
	type node map[string]any
	b, _ := json.Marshal(node{ // of strings
		"driver": driver, "backing": nil,
		"file": node{"driver": "nbd", "server": node{"type": "fd", "str": "4"}},
	})
	return "json:" + string(b)
}

// because explains a failed request with what is known of both sides.
func (d *Disk) because(err error) error {
	if _, broken := errors.AsType[*net.OpError](err); broken || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		d.conn.Close()
		err = d.child.end(err) // which may have said why
	}
	if fault := d.file.fault(); fault != nil {
		return fault
	}
	return err
}

// ReadAt fills p, inside Size.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.read(p, off); err != nil {
		return 0, d.because(err)
	}
	return len(p), nil
}

// NextData returns the first range at or after off that may hold anything but
// zeros; io.EOF when there is none.
func (d *Disk) NextData(off int64) (start, end int64, err error) {
	for off < d.Size() {
		for len(d.known) > 0 && d.known[0].end <= off {
			d.known = d.known[1:]
		}
		if len(d.known) == 0 || d.known[0].start > off {
			if d.known, err = d.status(off); err != nil {
				return 0, 0, fmt.Errorf("%w: %w", content.ErrCorrupt, d.because(err))
			}
		}
		if e := d.known[0]; e.data {
			return max(e.start, off), e.end, nil
		}
		off = d.known[0].end
	}
	return 0, 0, io.EOF
}

// Close ends the child.
func (d *Disk) Close() error {
	d.unwatch()
	d.conn.Close() // it may be closed, as may the other
	err := d.child.end(nil)
	d.file.conn.Close()
	d.serving.Wait()
	return err
}

// Compression names a tool that inflates what it reads, and the package of Debian's that has it.
type Compression struct{ Tool, Package string }

// Inflate writes what file holds, inflated, to out. A cut or damaged file is ErrInvalid.
// Warn is told what the child's fence lacks.
func Inflate(ctx context.Context, file *os.File, with Compression, out io.Writer, warn func(string)) error {
	if _, err := exec.LookPath(with.Tool); err != nil {
		return fmt.Errorf("%w: it takes %s to inflate it; install the package %s", errors.ErrUnsupported, with.Tool, with.Package)
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	full := &latch{w: out}
	c, err := start(ctx, task{args: []string{with.Tool, "-dc"}, size: info.Size(), stdin: file, out: full, warn: warn})
	if err != nil {
		return err
	}
	<-c.done
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case full.err != nil:
		return full.err
	case c.err != nil:
		return fmt.Errorf("%w: it is cut short or damaged: %s: %w: %s", content.ErrInvalid, with.Tool, c.err, c.said.String())
	}
	return nil
}

// latch remembers why a write failed: the tool only notices that nobody reads on.
type latch struct {
	w   io.Writer
	err error
}

func (l *latch) Write(p []byte) (n int, err error) {
	n, l.err = l.w.Write(p)
	return n, l.err
}
