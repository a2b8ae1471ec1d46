package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/node/instance"
)

// Lower is the command that shows what the data of an instance began as, of a node whose data folder is that: by the program
// that runs, though its file was replaced meanwhile.
func Lower(data string) []string {
	return []string{"/proc/self/exe", "instance", "lower", "--data", data}
}

// lowerCmd is started by the node, and outlives it as the workload does: who reads meanwhile what is not here waits.
type lowerCmd struct {
	Name string `arg:""`
	Dir  string `arg:""`
}

const (
	// againAtFirst and againAtMost are how often a node is asked again that does not answer.
	againAtFirst, againAtMost = 10 * time.Millisecond, time.Second
	// complainEvery is how often it is said that reads wait, into a log that nobody cuts: a node may be away for days.
	complainEvery = time.Minute
	// streamMost is how much is asked for at once: what the kernel does, and the API takes.
	streamMost = 1 << 20
)

// Run shows what the instance's data began as until that is unmounted.
func (c *lowerCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	to, err := app.Client()
	if err != nil {
		return err
	}
	log, complaint := slog.New(slog.NewTextHandler(std.Out, nil)), rate.Sometimes{First: 1, Interval: complainEvery}
	ask := func(ctx context.Context, query string, p []byte) error {
		path := fmt.Sprintf("%s/lower?%s&length=%d", pathOf(c.Name), query, len(p))
		b := backoff.NewExponentialBackOff()
		b.InitialInterval, b.MaxInterval = againAtFirst, againAtMost
		_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, c.read(ctx, to, path, p) }, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(0),
			backoff.WithNotify(func(err error, _ time.Duration) {
				complaint.Do(func() { log.Warn("a read waits for the node", "read", query, "err", err) })
			}))
		return err
	}
	chunk := func(ctx context.Context, index uint64, off int, p []byte) error {
		return ask(ctx, fmt.Sprintf("chunk=%d&offset=%d", index, off), p)
	}
	stream := func(ctx context.Context, p []byte, at int64) error {
		for most := range slices.Chunk(p, streamMost) {
			if err := ask(ctx, fmt.Sprintf("offset=%d", at), most); err != nil {
				return err
			}
			at += int64(len(most))
		}
		return nil
	}
	return instance.Show(ctx, c.Dir, chunk, stream, log)
}

// read fills p with what is at a path.
func (c *lowerCmd) read(ctx context.Context, to *client.Client, path string, p []byte) error {
	got := into{p}
	err := to.Copy(ctx, &got, path)
	if problem, ok := errors.AsType[*client.Problem](err); ok && (problem.Status == http.StatusNotFound || problem.Status == http.StatusBadRequest) {
		return backoff.Permanent(err) // the node does not have the instance any more; all else, such as credentials of the origin, may be mended
	}
	if err == nil && len(got.left) > 0 {
		err = fmt.Errorf("%w: %d bytes are missing, of %d", io.ErrUnexpectedEOF, len(got.left), len(p))
	}
	return err
}

// into is filled by what is written.
type into struct{ left []byte }

func (w *into) Write(p []byte) (n int, err error) {
	n = copy(w.left, p)
	if w.left = w.left[n:]; n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}
