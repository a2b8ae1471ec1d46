package node

import (
	"context"
	"path/filepath"

	"github.com/grangemesh/grange/node/mounts"
	"github.com/grangemesh/grange/node/oci"
	"github.com/grangemesh/grange/origin/content"
)

func (n *Node) openMounts(context.Context) (err error) {
	n.Mounts, err = mounts.New(mounts.Config{File: filepath.Join(n.cfg.Dir, "mounts.json"), Open: n.Images.OpenTree, Now: n.cfg.Now, Log: n.cfg.Log})
	return err
}

// openDoor opens the door for container runtimes, in a node that has one.
func (n *Node) openDoor(context.Context) (err error) {
	n.Door, err = oci.New(oci.Config{
		Terms: n.cfg.OCI, Dir: filepath.Join(n.cfg.Dir, "oci"), Library: n.Images, Operations: n.Operations, Self: n.swarm.ID(), Live: neighbours{n}.Live, Call: n.exchange.Call,
		Farm: n.Farm(), MayPublish: n.signer.Identity().MaySign(content.KindTree, ""), Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}
