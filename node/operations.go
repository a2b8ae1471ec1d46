package node

import (
	"context"
	"time"
)

// stopTimeout bounds what a stop waits for.
const stopTimeout = 15 * time.Second

// runOperations ends what is under way when ctx does.
func (n *Node) runOperations(ctx context.Context) error {
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return n.Operations.Close(ctx)
}
