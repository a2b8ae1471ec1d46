package foreign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// memoryMax is the address space of a child, in KiB. QEMU takes 32 MiB for a
	// table and caches; xz and zstd up to 128 MiB.
	memoryMax = 1 << 20
	// A child has timeMin seconds of a processor, and one more for each stepSize
	// bytes of its file: the slowest tools do some MiB in one.
	timeMin  = 300
	stepSize = 1 << 20
	// filesMax are the descriptors of a child.
	filesMax = 64
	// saidMax bounds what is kept of a child's complaints, in bytes.
	saidMax = 1 << 10
	// partingTimeout is how long a child that has hung up may take to end, and to say why.
	partingTimeout = 2 * time.Second
	// nobody owns nothing: who may change users runs a child as this one.
	nobody = 65534
)

// limits of a child, before it becomes "$@": it writes no files, and what listens on descriptor 3 is its own.
const limits = `
ulimit -v "$1"; ulimit -t "$2"; ulimit -n "$3"; ulimit -f 0; ulimit -c 0
shift 3
LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"
`

// task is what a child is to do.
type task struct {
	args  []string
	size  int64 // of what it reads, in bytes
	stdin *os.File
	out   io.Writer
	files []*os.File // its descriptors from 3 on
	warn  func(string)
}

// fence is what a child can't get out of.
type fence struct {
	attr *syscall.SysProcAttr
	root string // the folder of the host that the child has for its root, "" for the host's own
	// lacks says what a better one would have, after "reads the source"; "" for the best.
	lacks string
}

// child is a running program of others.
type child struct {
	cmd  *exec.Cmd
	said tail
	done chan struct{} // closed when it has ended and err is set
	err  error
}

// start runs a task in the best fence that the host allows, until ctx is done at most.
func start(ctx context.Context, t task) (*child, error) {
	tool, err := exec.LookPath(t.args[0])
	if err == nil {
		var dir string
		dir, err = filepath.EvalSymlinks(filepath.Dir(tool)) // /bin is /usr/bin
		tool = filepath.Join(dir, filepath.Base(tool))
	}
	if err != nil {
		return nil, err
	}
	err = errors.ErrUnsupported
	for _, f := range fences() {
		inside, ok := strings.CutPrefix(tool, f.root+"/")
		if !ok {
			continue
		}
		c := &child{done: make(chan struct{})}
		args := []string{"-euc", limits, t.args[0], strconv.Itoa(memoryMax), strconv.FormatInt(timeMin+t.size/stepSize, 10), strconv.Itoa(filesMax), "/" + inside}
		c.cmd = exec.CommandContext(ctx, "/bin/sh", append(args, t.args[1:]...)...)
		c.cmd.Env = []string{"LC_ALL=C", "MALLOC_ARENA_MAX=2", "MALLOC_MMAP_THRESHOLD_=67108864", "MALLOC_TRIM_THRESHOLD_=134217728"}
		c.cmd.Dir, c.cmd.ExtraFiles, c.cmd.SysProcAttr, c.cmd.WaitDelay = "/", t.files, f.attr, partingTimeout
		c.cmd.Stdout, c.cmd.Stderr = t.out, &c.said
		if t.stdin != nil {
			c.cmd.Stdin = t.stdin
		}
		if err = restricted(c.cmd); err == nil {
			if f.lacks != "" {
				t.warn(filepath.Base(tool) + " reads the source " + f.lacks)
			}
			go func() {
				defer close(c.done)
				c.err = c.cmd.Wait()
			}()
			return c, nil
		}
		if !forbidden(err) {
			break
		}
	}
	return nil, fmt.Errorf("start %s: %w", t.args[0], err)
}

// forbidden tells whether a host has no such fence: its rights or limits forbid a part
// of it, or its programs lie elsewhere.
func forbidden(err error) bool {
	return errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC)
}

// end waits a moment for a child that has hung up, and kills any other. It returns
// cause, or what the child says of it.
func (c *child) end(cause error) error {
	if cause != nil {
		select {
		case <-c.done:
			cause = fmt.Errorf("the tool has ended: %w", c.err)
			if c.err == nil {
				cause = errors.New("the tool has ended")
			}
		case <-time.After(partingTimeout):
		}
		if said := c.said.String(); said != "" {
			cause = fmt.Errorf("%w: %s", cause, said)
		}
	}
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
	return cause
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-saidMax):]...)
	t.b = t.b[max(0, len(t.b)-saidMax):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.b), ""))
}
