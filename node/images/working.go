package images

import (
	"context"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// TempDir in the data folder holds files of work that is under way; a start clears
	// it.
	TempDir = "tmp"
	// workingShare of a disk, one part in so many, and no more than workingMax bytes,
	// stay free of working files: that is the volumes', whose guests write meanwhile.
	// It is half of what the cache leaves free, and the cache gives way.
	workingShare = 40
	workingMax   = 16 << 30
	// workingLook is how often the room is looked at: what a disk writes meanwhile is
	// far less than what is left.
	workingLook = 250 * time.Millisecond
)

// working is the folder of files that imports need for a while. They have what is
// free there but for the volumes' part.
type working struct {
	dir  string
	free func(dir string) (free, total uint64, err error)
}

// WorkingRoom returns what fails when about n bytes more for working files in dir are
// not to be had.
func WorkingRoom(dir string) func(n int64) error { return workingIn(dir).room }

func workingIn(dir string) working { return working{dir, cache.DiskFree} }

// room fails when about n bytes more are not to be had.
func (w working) room(n int64) error {
	free, total, err := w.free(w.dir)
	if err != nil {
		return fmt.Errorf("working files in %s: %w", w.dir, err)
	}
	reserve := min(total/workingShare, workingMax)
	if free >= reserve+uint64(n) {
		return nil
	}
	return fmt.Errorf("%w for working files in %s: %s are needed beside the %s that are left to volumes, and %s are free; make room there, or import on another node",
		content.ErrNoSpace, w.dir, humanize.IBytes(uint64(n)), humanize.IBytes(reserve), humanize.IBytes(free))
}

// guard ends ctx when the room ran out, whoever took it. Stop ends the guard alone: what
// was begun with the context, as a child that reads a disk, goes on.
func (w working) guard(ctx context.Context) (guarded context.Context, stop func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	enough, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(workingLook)
		defer tick.Stop()
		for {
			select {
			case <-guarded.Done():
				return
			case <-enough:
				return
			case <-tick.C:
				if err := w.room(0); err != nil {
					cancel(err)
				}
			}
		}
	}()
	return guarded, func() {
		close(enough)
		<-ended
	}
}
