// Package boot measures how long a guest waits for its disk while it boots: what a guest
// read is recorded once, and read again, in the same order and with the same pauses, of
// disks whose bytes come from elsewhere.
package boot

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/simulations/debian"
)

// Access is one read of a guest.
type Access struct {
	Offset int64
	Length int
	// Sent and Answered are times since the guest's start.
	Sent, Answered time.Duration
}

// Trace is what a guest read, in the order in which it asked.
type Trace []Access

// block is what a guest reads at least.
const block = 4096

// Unique is how many bytes were read, in whole blocks, each counted once.
func (t Trace) Unique() int64 {
	met := map[int64]bool{}
	for _, a := range t {
		for at := a.Offset / block; at*block < a.Offset+int64(a.Length); at++ {
			met[at] = true
		}
	}
	return int64(len(met)) * block
}

// Chunks are the numbers of the chunks of a size that were read, in the order of their first reads.
func (t Trace) Chunks(size int64) (out []uint64) {
	met := map[int64]bool{}
	for _, a := range t {
		for n := a.Offset / size; n*size < a.Offset+int64(a.Length); n++ {
			if !met[n] {
				met[n] = true
				out = append(out, uint64(n))
			}
		}
	}
	return out
}

// Recorded returns what an image's guest reads until its prompt: it boots the image, or finds what was recorded before beside the
// image.
func Recorded(ctx context.Context, img debian.Image) (Trace, error) {
	path := filepath.Join(filepath.Dir(img.Disk), "boot.trace.gz")
	t, err := load(path)
	if !errors.Is(err, os.ErrNotExist) {
		return t, err
	}
	if t, err = record(ctx, img); err != nil {
		return nil, fmt.Errorf("record the boot of %s: %w", img.Disk, err)
	}
	return t, t.save(path)
}

// record boots an image from its file, whose server notes each read. What the guest writes stays in its emulator.
func record(ctx context.Context, img debian.Image) (Trace, error) {
	dir, err := os.MkdirTemp("", "boot-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "log")
	uri, end, err := Serve(ctx, dir, img.Disk, "--filter=log", "logfile="+log)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if _, err := img.Boot(ctx, uri, io.Discard, "-snapshot"); err != nil {
		return nil, errors.Join(err, end())
	}
	if err := end(); err != nil {
		return nil, err
	}
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(f, start)
}

// serveTimeout is how long nbdkit may take to listen.
const serveTimeout = 10 * time.Second

// Serve serves a file read-only over NBD, with options of nbdkit's, until end is called.
func Serve(ctx context.Context, dir, file string, options ...string) (uri string, end func() error, err error) {
	socket := filepath.Join(dir, "raw.sock")
	cmd := exec.CommandContext(ctx, "nbdkit", append([]string{"--foreground", "--exit-with-parent", "--readonly", "--unix", socket, "file", file}, options...)...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	end = func() error {
		err := cmd.Process.Signal(os.Interrupt)
		if err := errors.Join(err, cmd.Wait(), os.RemoveAll(socket)); err != nil {
			return fmt.Errorf("nbdkit: %w: %s", err, said.String())
		}
		return nil
	}
	_, err = backoff.Retry(ctx, func() (os.FileInfo, error) { return os.Stat(socket) },
		backoff.WithBackOff(backoff.NewConstantBackOff(10*time.Millisecond)), backoff.WithMaxElapsedTime(serveTimeout))
	if err != nil {
		return "", nil, errors.Join(err, end())
	}
	return "nbd+unix:///?socket=" + socket, end, nil
}

// parse reads the log of nbdkit's filter: a line when a read comes, and one when it is answered.
func parse(log io.Reader, start time.Time) (Trace, error) {
	line := regexp.MustCompile(`^(\S+ \S+) connection=(\d+) (\.\.\.)?Read id=(\d+) (?:offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))?`)
	var out Trace
	open := map[string]int{} // which of out
	for lines := bufio.NewScanner(log); lines.Scan(); {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		at, err := time.ParseInLocation("2006-01-02 15:04:05.000000", m[1], time.Local)
		if err != nil {
			return nil, err
		}
		id := m[2] + " " + m[4]
		if m[3] != "" {
			out[open[id]].Answered = at.Sub(start)
			continue
		}
		a := Access{Sent: at.Sub(start)}
		if _, err := fmt.Sscan(m[5]+" "+m[6], &a.Offset, &a.Length); err != nil {
			return nil, err
		}
		open[id], out = len(out), append(out, a)
	}
	out = slices.DeleteFunc(out, func(a Access) bool { return a.Answered == 0 }) // the boot was over
	if len(out) == 0 {
		return nil, errors.New("nothing was read")
	}
	return out, nil
}

func (t Trace) save(path string) error {
	f, err := os.Create(path + ".tmp")
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	for _, a := range t {
		fmt.Fprintln(z, a.Offset, a.Length, a.Sent.Microseconds(), a.Answered.Microseconds())
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func load(path string) (out Trace, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		var a Access
		var sent, answered int64
		if _, err := fmt.Sscan(lines.Text(), &a.Offset, &a.Length, &sent, &answered); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, lines.Text(), err)
		}
		a.Sent, a.Answered = time.Duration(sent)*time.Microsecond, time.Duration(answered)*time.Microsecond
		out = append(out, a)
	}
	return out, lines.Err()
}

// after returns which read's answer came last before each was sent, -1 for none: a guest does what it does upon that.
func (t Trace) after() []int {
	ended := make([]int, len(t))
	for i := range ended {
		ended[i] = i
	}
	slices.SortFunc(ended, func(a, b int) int { return cmp.Compare(t[a].Answered, t[b].Answered) })
	out := make([]int, len(t))
	for i, a := range t {
		n, _ := slices.BinarySearchFunc(ended, a.Sent, func(j int, sent time.Duration) int {
			return cmp.Or(cmp.Compare(t[j].Answered, sent), -1)
		})
		out[i] = -1
		if n > 0 {
			out[i] = ended[n-1]
		}
	}
	return out
}
