package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

func TestLockIsOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	// A lock is an open file's: it keeps out this very process too.
	_, err = Lock(path)
	if !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Lock(path)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestLockWithin waits for one that is given up meanwhile, not for one that stays.
func TestLockWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "lock")
		first, err := LockWithin(t.Context(), path, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := LockWithin(t.Context(), path, time.Second); !errors.Is(err, content.ErrConflict) || time.Since(begun) != time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := LockWithin(stopped, path, time.Second); !errors.Is(err, content.ErrConflict) {
			t.Errorf("who does not wait: %v", err)
		}
		time.AfterFunc(time.Second/2, func() { _ = first.Close() }) // the next line shows it
		second, err := LockWithin(t.Context(), path, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
}
