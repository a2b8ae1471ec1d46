package api

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node/instance/state"
	instances "github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// Alone is something that this node has and nobody else.
type Alone struct {
	About string    `json:"about" doc:"volume:NAME, snapshot:NAME@N, instance:NAME, or cache"`
	Bytes int64     `json:"bytes,omitempty" doc:"about so much; 0 where that is not known"`
	Since time.Time `json:"since,omitzero" doc:"what came after that; absent where it is all"`
	Text  string    `json:"text" doc:"what would be lost with this node"`
	Mend  string    `json:"mend,omitempty" doc:"a command after which others have it too"`
}

// risked has volumes say what would be lost of them.
func (s *Server) risked(all ...Volume) []Volume {
	self := s.cfg.Node.Self().ID
	for i, v := range all {
		loss := terms.LossOf(v, self)
		all[i].Loss, all[i].Alone = loss.Text, loss.Bytes
	}
	return all
}

func (s *Server) alone(a huma.API) {
	lists(a, "/api/alone", "what this node has and nobody else", func(x Alone) string { return x.About }, s.onlyHere)
}

// onlyHere is what would be lost with this node.
func (s *Server) onlyHere(ctx context.Context) ([]Alone, error) {
	n := s.cfg.Node
	out := []Alone{}
	self := n.Self().ID
	if st := n.Status(); st.Cache.Used > 0 && st.Origin.URL != "" && !slices.Contains([]string{"ok", "read-only"}, st.Origin.State) {
		out = append(out, Alone{About: "cache", Bytes: st.Cache.Used, Text: "the origin is " + st.Origin.State + ": of this cache others have what they hold themselves, and no more", Mend: "grange doctor"})
	}
	if n.Volumes == nil {
		return out, nil
	}
	for _, v := range n.Volumes.List() {
		loss := terms.LossOf(v, self)
		if !loss.Here {
			continue
		}
		mend := "grange volume snapshot " + v.Name + " --wait durable"
		if v.State != terms.StateAttached { // what is wrong goes first
			mend = "grange volume show " + v.Name
		}
		out = append(out, Alone{About: "volume:" + v.Name, Bytes: loss.Bytes, Since: v.FoldedAt, Text: loss.Text, Mend: mend})
	}
	snapshots, err := n.Volumes.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, x := range snapshots {
		if x.Node != self {
			continue
		}
		what := "what the bucket has not got of it yet"
		mend := ""
		if x.Orphan {
			what, mend = "what this node had acknowledged when another took the volume over", fmt.Sprintf("grange volume create NEW --from snapshot:%s", x.ID)
		}
		out = append(out, Alone{About: "snapshot:" + x.ID, Since: x.Created, Text: what, Mend: mend})
	}
	for _, i := range n.Instances.List() {
		if i.Spec.Runtime == instances.Process && i.State != state.Unprovisioned && i.Dir != "" {
			text := "what it has changed since it was put away last"
			if i.Saved.IsZero() {
				text = "all that it has: it was never put away"
			}
			out = append(out, Alone{About: string(content.KindInstance) + ":" + i.Name, Since: i.Saved, Text: text, Mend: "grange instance deprovision " + i.Name})
		}
	}
	return out, nil
}
