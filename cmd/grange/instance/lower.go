package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"

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
)

// Run shows what the instance's data began as until that is unmounted.
func (c *lowerCmd) Run(ctx context.Context, app *ask.Node, std ask.Stdio) error {
	to, err := app.Client()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(std.Out, nil))
	read := func(ctx context.Context, chunk uint64, off int, p []byte) error {
		path := fmt.Sprintf("%s/lower/%d?offset=%d&length=%d", pathOf(c.Name), chunk, off, len(p))
		b := backoff.NewExponentialBackOff()
		b.InitialInterval, b.MaxInterval = againAtFirst, againAtMost
		_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, c.read(ctx, to, path, p) }, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(0),
			backoff.WithNotify(func(err error, _ time.Duration) { log.Warn("a read waits for the node", "chunk", chunk, "err", err) }))
		return err
	}
	return instance.Show(ctx, c.Dir, read, log)
}

// read fills p with what is at a path.
func (c *lowerCmd) read(ctx context.Context, to *client.Client, path string, p []byte) error {
	var got bytes.Buffer
	err := to.Copy(ctx, &got, path)
	if problem, ok := errors.AsType[*client.Problem](err); ok && problem.Status/100 == http.StatusBadRequest/100 {
		return backoff.Permanent(err) // the node does not have the instance any more
	}
	if err == nil && got.Len() != len(p) {
		err = fmt.Errorf("%w: %d bytes came, of %d", io.ErrUnexpectedEOF, got.Len(), len(p))
	}
	copy(p, got.Bytes())
	return err
}
