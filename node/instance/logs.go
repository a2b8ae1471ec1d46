package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// logMax is how large the log of an instance grows before it is begun anew, and logsKept how many older ones are kept.
	logMax   = 16 << 20
	logsKept = 3
	// wordsMax is how much of a log is in an error.
	wordsMax = 400
	// followEvery is how often it is looked whether a log has grown that somebody follows.
	followEvery = 200 * time.Millisecond
)

// rotate begins a large log anew: the workload has it open, so it is copied and cut. What is said between both is lost.
func rotate(dir string) error {
	path := filepath.Join(dir, logFile)
	info, err := os.Stat(path)
	if err != nil || info.Size() < logMax {
		return ignore(err, fs.ErrNotExist)
	}
	for n := logsKept; n > 1; n-- {
		if err := os.Rename(older(path, n-1), older(path, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(older(path, 1), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}

func older(path string, n int) string { return fmt.Sprintf("%s.%d", path, n) }

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// lastWords is the end of what a workload has said, for an error; or its emulator, where that has said something.
func (i *hosted) lastWords() string {
	path := filepath.Join(i.dir, emulatorLog)
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		path = filepath.Join(i.dir, logFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > wordsMax {
		_, _ = f.Seek(-wordsMax, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, wordsMax))
	if text := strings.TrimSpace(string(b)); err == nil && text != "" {
		return "; it said last: " + text
	}
	return ""
}

// hasSaid is nil once a workload has said something, behind so many bytes of its log; or in all of it, where that was begun
// anew.
func (i *hosted) hasSaid(behind int64, what string) error {
	f, err := os.Open(filepath.Join(i.dir, logFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() >= behind {
		_, err = f.Seek(behind, io.SeekStart)
		if err != nil {
			return err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, logMax))
	if err == nil && !bytes.Contains(b, []byte(what)) {
		err = fmt.Errorf("it has not said %q", what)
	}
	return err
}

// Logs writes the last bytes of what an instance has said, all of its log with 0, and with follow what it says from then on
// until ctx ends, or the instance is here no more.
func (h *Hub) Logs(ctx context.Context, name string, last int64, follow bool, w io.Writer) error {
	i := h.get(name)
	if i == nil {
		return fmt.Errorf("logs of instance %q: %w", name, errElsewhere)
	}
	f, err := os.Open(filepath.Join(i.dir, logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && last > 0 && info.Size() > last {
		if _, err := f.Seek(-last, io.SeekEnd); err != nil {
			return err
		}
	}
	for {
		gone := h.get(name) != i
		if _, err := io.Copy(w, f); err != nil || !follow || gone {
			return err
		}
		if at, err := f.Seek(0, io.SeekCurrent); err == nil {
			if info, err := f.Stat(); err == nil && info.Size() < at { // it was begun anew
				_, _ = f.Seek(0, io.SeekStart)
			}
		}
		if !i.wait(ctx, followEvery, nil) {
			return nil
		}
	}
}
