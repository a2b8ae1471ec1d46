package main

import (
	"context"

	"github.com/grangemesh/grange/cmd/csi"
	"github.com/grangemesh/grange/cmd/grange/ask"
)

type csiCmd struct {
	logFlags
	Endpoint string `required:"" env:"CSI_ENDPOINT" help:"Where the driver is asked." placeholder:"unix:///PATH"`
}

// Run serves until ctx ends.
func (c *csiCmd) Run(ctx context.Context, app *cli, asked *ask.Node, std ask.Stdio) error {
	node, err := asked.Client()
	if err != nil {
		return err
	}
	return csi.New(csi.Config{Endpoint: c.Endpoint, Version: version(), Node: node, Log: c.open(app, std.Err, nil)}).Run(ctx)
}
