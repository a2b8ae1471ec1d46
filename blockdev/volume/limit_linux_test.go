package volume

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"
)

// TestFlushWithoutADescriptor has the process run out of file descriptors at the first
// flush of a segment, which needs one: that flush fails, and the volume goes on.
func TestFlushWithoutADescriptor(t *testing.T) {
	v := open(t, create(t), newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, unit), 0, false))
	var before syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(lowest(t)), Max: before.Max}))
	err := v.Flush(t.Context())
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before))
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("flush without a descriptor: %v", err)
	}
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, unit), unit, false))
	must(t, v.Flush(t.Context()))
	must(t, v.Close())
}

// lowest is the number that the next file would get.
func lowest(t *testing.T) uintptr {
	t.Helper()
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	return f.Fd()
}
