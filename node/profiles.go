package node

import (
	"context"

	"github.com/grangemesh/grange/node/profile"
	"github.com/grangemesh/grange/origin/content"
)

func (n *Node) openProfiles(context.Context) error {
	n.Profiles = profile.New(profile.Config{
		Dir: n.cfg.Dir, Images: n.Images, Names: n.Names, Operations: n.Operations, Emulator: n.cfg.Instances.emulator(),
		Traces: n.Boots.Traces, Booted: n.Boots.Booted, Members: n.readersOf, Call: n.callID, LayOut: n.Images.LayOut,
		Writable: n.origin.writable, Signer: n.signer, Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return nil
}

// readersOf are the members that are connected and may read content of a scope, those of this farm first.
func (n *Node) readersOf(scope content.Scope) (out []string) {
	near, far := n.connected()
	for _, c := range append(near, far...) {
		if c.who.MayRead(scope) {
			out = append(out, c.id.String())
		}
	}
	return out
}
