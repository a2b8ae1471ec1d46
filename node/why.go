package node

import (
	"context"
	"slices"

	"github.com/grangemesh/grange/node/why"
)

// Why says what the slowest reads of a volume waited for.
type Why struct {
	Words      []string   `json:"words" doc:"what the reads waited for, a line for those that waited for the same"`
	Reads      []why.Read `json:"reads" doc:"those under way, then those of the last ten minutes that took longer than 10 ms, the slowest first, 64 at most"`
	PassedOver []Peer     `json:"passed_over" doc:"members that are not asked now, as they failed or lied lately"`
}

// Why returns the slowest reads of the last minutes of a volume that this node serves.
func (n *Node) Why(ctx context.Context, volume string) (Why, error) {
	v, err := n.Volumes.Find(ctx, volume)
	out := Why{Words: []string{}, Reads: []why.Read{}, PassedOver: []Peer{}}
	if err != nil || v.Slow == nil {
		return out, err
	}
	out.Reads = append(out.Reads, v.Slow()...)
	for i := range out.Reads {
		steps := slices.Clone(out.Reads[i].Steps) // the kept ones are others' too
		for j := range steps {
			steps[j].Name = n.nameOf(steps[j].Peer)
		}
		out.Reads[i].Steps = steps
	}
	out.Words = append(out.Words, why.Explain(out.Reads)...)
	out.PassedOver = append(out.PassedOver, slices.DeleteFunc(n.FarmPeers(), func(p Peer) bool { return p.Until.IsZero() })...)
	return out, nil
}
