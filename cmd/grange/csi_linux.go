package main

import (
	"context"

	"github.com/grangemesh/grange/cmd/csi"
	"github.com/grangemesh/grange/cmd/grange/ask"
)

type csiCmd struct {
	logFlags
	Endpoint string `required:"" env:"CSI_ENDPOINT" help:"Where the driver is asked." placeholder:"unix:///PATH"`
	NodeID   string `name:"node-id" help:"What the orchestrator calls this host's node: its ID, which it is when not given, or its name in the mesh." placeholder:"ID"`
}

// Run serves until ctx ends.
func (c *csiCmd) Run(ctx context.Context, app *cli, asked *ask.Node, std ask.Stdio) error {
	node, err := asked.Client()
	if err != nil {
		return err
	}
	return csi.New(csi.Config{Endpoint: c.Endpoint, NodeID: c.NodeID, Version: version(), Node: node, Log: c.open(app, std.Err, nil)}).Run(ctx)
}
