package ask

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/images"
)

// ExportTo is where commands write a disk.
type ExportTo struct {
	File  string `arg:"" type:"path" help:"A file on the node's host, or - for standard output."`
	Force bool   `env:"-" help:"Replace a file that is there."`
}

// Export has the API write a disk there, by the path of that request.
func (c *ExportTo) Export(ctx context.Context, app *Node, std Stdio, path string) error {
	if c.File != "-" {
		return app.Operate(ctx, std, "POST", path, api.ExportRequest{File: c.File, Force: c.Force})
	}
	if app.Remote != "" {
		return fmt.Errorf("%w: standard output is here, and the node of GRANGE_API may be on another host: give it a path there", ErrUsage)
	}
	spool := filepath.Join(app.Data, images.TempDir, "stdout-"+rand.Text()+".spool")
	defer os.Remove(spool) // the node may have made it though this command was given up
	if err := app.Operate(ctx, std.Aside(), "POST", path, api.ExportRequest{File: spool}); err != nil {
		return err
	}
	f, err := os.Open(spool)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(terminal.Raw(std.Out), f)
	return err
}
