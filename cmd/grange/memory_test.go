package main

import (
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
)

// TestMemoryLimit: the flag sets the collector's limit, GOMEMLIMIT comes before it.
func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	log := slog.New(slog.DiscardHandler)
	t.Setenv("GOMEMLIMIT", "") // so that it is put back
	os.Unsetenv("GOMEMLIMIT")
	if err := limitMemory(1<<30, log); err != nil {
		t.Fatal(err)
	}
	if want := int64(math.Floor(memoryShare * (1 << 30))); debug.SetMemoryLimit(-1) != want {
		t.Errorf("the limit is %d, want %d", debug.SetMemoryLimit(-1), want)
	}
	debug.SetMemoryLimit(4 << 30)
	t.Setenv("GOMEMLIMIT", "4GiB")
	if err := limitMemory(1<<30, log); err != nil || debug.SetMemoryLimit(-1) != 4<<30 {
		t.Errorf("GOMEMLIMIT was overruled: %d, %v", debug.SetMemoryLimit(-1), err)
	}
	if err := limitMemory(1<<20, log); !errors.Is(err, ask.ErrUsage) {
		t.Errorf("a MiB: %v", err)
	}
}
