package node

import (
	"context"
	"path/filepath"

	"github.com/grangemesh/grange/node/mounts"
)

func (n *Node) openMounts(context.Context) (err error) {
	n.Mounts, err = mounts.New(mounts.Config{File: filepath.Join(n.cfg.Dir, "mounts.json"), Open: n.Images.OpenTree, Now: n.cfg.Now, Log: n.cfg.Log})
	return err
}

// runMounts shows trees to this host, in a node that does.
func (n *Node) runMounts(ctx context.Context) error {
	if n.Mounts == nil {
		return nil
	}
	return n.Mounts.Run(ctx)
}
