package profile

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Method is the call by which a member is asked what boots on it have read of a root.
const Method = "image/boots"

const (
	// membersMax bounds the members that are asked: a list is made of catalog.BootRunsMax boots at most.
	membersMax = catalog.BootRunsMax
	// askedAtOnce bounds those that are asked at once.
	askedAtOnce = 16
	// tracesMax bounds the boots of one member, so that none has all of a list be what it says.
	tracesMax = 4
	// answerMax bounds an answer: as many traces of as many chunks, of 9 bytes each at most, and what is around them.
	answerMax = tracesMax*catalog.BootChunksMax*9 + 1<<10
)

// Question asks for what boots have read of a root.
type Question struct {
	Root content.CID `cbor:"root"`
}

// Answer has that, by boot, in the order of first touch.
type Answer struct {
	Traces [][]uint64 `cbor:"traces"`
}

// Answer answers a Method of another member. Who may not read a root learns as much of it as of one that was never met.
func (p *Profiles) Answer(from trust.Identity, q Question) (Answer, error) {
	out := Answer{Traces: [][]uint64{}}
	if !from.Role.IsMember() {
		return out, fmt.Errorf("call %s: %w", Method, content.ErrNotFound)
	}
	may := false
	for _, scope := range []content.Scope{content.Public(), content.Mesh(), content.Farm(from.Farm)} {
		_, known := p.cfg.Names.OfRoot(q.Root, scope)
		may = may || known && from.MayRead(scope)
	}
	if !may {
		return out, nil
	}
	for _, trace := range p.cfg.Traces(q.Root) {
		if len(out.Traces) < tracesMax && len(trace) <= catalog.BootChunksMax {
			out.Traces = append(out.Traces, trace)
		}
	}
	return out, nil
}

// ask returns what members have recorded of a root. Who does not answer has nothing to say.
func (p *Profiles) ask(ctx context.Context, root content.CID, scope content.Scope) (out [][]uint64) {
	body, err := p.cfg.Codec.Marshal(Question{root})
	if err != nil {
		return nil
	}
	members := p.cfg.Members(scope)
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(askedAtOnce)
	for _, id := range members[:min(len(members), membersMax)] {
		group.Go(func() error {
			traces, err := p.askOne(ctx, id, body)
			if err != nil {
				p.cfg.Log.Debug("a member does not say what its guests read", "member", id, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, traces...)
			return nil
		})
	}
	_ = group.Wait() // none fails
	return out
}

func (p *Profiles) askOne(ctx context.Context, id string, question []byte) ([][]uint64, error) {
	body, err := p.cfg.Call(ctx, id, Method, question)
	if err == nil && len(body) > answerMax {
		err = fmt.Errorf("%w: an answer of %d bytes, want %d at most", content.ErrCorrupt, len(body), answerMax)
	}
	var a Answer
	if err == nil {
		err = p.cfg.Codec.Unmarshal(body, &a)
	}
	if err != nil {
		return nil, err
	}
	return a.Traces[:min(len(a.Traces), tracesMax)], nil
}
