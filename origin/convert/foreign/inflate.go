package foreign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/grangemesh/grange/origin/content"
)

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
