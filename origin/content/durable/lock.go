package durable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// lockInterval is how often LockWithin looks whether a lock is free.
const lockInterval = 50 * time.Millisecond

// LockWithin is Lock for who comes right after another that was killed: its files close
// some moments after it is gone to those who watch it. It waits so long at most.
func LockWithin(ctx context.Context, path string, wait time.Duration) (io.Closer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.Tick(lockInterval)
	for {
		lock, err := Lock(path)
		if !errors.Is(err, content.ErrConflict) {
			return lock, err
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Lock keeps others out of what a file stands for, which it makes if need be, until the lock is closed or the
// process ends. It says by content.ErrConflict, and by the number of the process, that another has it. The
// file stays: who removes a lock may remove another's.
func Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ok, err := TryLock(f)
	switch {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	case !ok:
		holder, _ := io.ReadAll(io.LimitReader(f, 32)) // only for the text
		return nil, errors.Join(fmt.Errorf("%w: process %s has it (it holds %s)", content.ErrConflict, strings.TrimSpace(string(holder)), path), f.Close())
	}
	// The lock is held, whatever the file says: a full disk has no room for that.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}
