package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// WarmMethod is the call by which a member of a farm has another one warm an image.
const WarmMethod = "image/warm"

const (
	// askAgain is how often a member that warms an image is asked how far it is, and
	// awayAfter how long one may be silent until it is given up.
	askAgain  = 500 * time.Millisecond
	awayAfter = 10 * time.Second
	// cancelWait bounds what a cancelled operation waits for members to stop.
	cancelWait = 3 * time.Second
)

// Neighbour is another member of this node's farm, here or away. Its Name proves nothing,
// and others may have the same.
type Neighbour struct{ ID, Name string }

func (n Neighbour) String() string { return strings.TrimSpace(n.Name + " " + n.ID) }

// Holder is a member that has some of an image.
type Holder struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Farm   string `json:"farm,omitempty" doc:"absent for a seed"`
	Way    string `json:"way,omitempty" doc:"what the connection with it leads through; absent for this node, and without one"`
	Chunks uint64 `json:"chunks"`
	Bytes  int64  `json:"bytes" doc:"about what they take at the origin"`
}

// Holders returns an image with all members that are known to have some of it, those that
// have most first.
func (im *Images) Holders(ctx context.Context, name string) (Image, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return Image{}, err
	}
	i, err := im.info(k)
	if err != nil {
		return i, err
	}
	m, err := im.cfg.Fetcher.Learn(RootOf(k))
	if err != nil {
		return i, err
	}
	i.Holders = []Holder{}
	for id, chunks := range m.Holders(ctx) {
		if chunks > 0 {
			h := im.cfg.Holder(id)
			h.Chunks, h.Bytes = chunks, int64(float64(i.Stored)*float64(chunks)/float64(max(i.Chunks, 1)))
			i.Holders = append(i.Holders, h)
		}
	}
	slices.SortFunc(i.Holders, func(a, b Holder) int { return cmp.Or(cmp.Compare(b.Chunks, a.Chunks), cmp.Compare(a.ID, b.ID)) })
	return i, nil
}

// WarmRequest has a member warm an image, at least at that version, or say how far its
// operation is that it has begun for that, or cancel it. So it may be asked again and again.
type WarmRequest struct {
	Name      string `cbor:"name"`
	Version   uint64 `cbor:"version"`
	Operation string `cbor:"operation"`
	Cancel    bool   `cbor:"cancel"`
}

// WarmAnswer is how far it is.
type WarmAnswer struct {
	Operation string          `cbor:"operation"`
	Node      operations.Node `cbor:"node"`
}

// AnswerWarm answers a WarmMethod of another member of this farm.
func (im *Images) AnswerWarm(ctx context.Context, from trust.Identity, q WarmRequest) (WarmAnswer, error) {
	if !from.Role.IsMember() || from.Farm != im.cfg.Signer.Identity().Farm {
		return WarmAnswer{}, fmt.Errorf("call %s: %w", WarmMethod, content.ErrNotFound)
	}
	return im.warmFor(ctx, q)
}

// warmFor begins what q asks for, says how far it is, or cancels it. What somebody else
// has begun here is waited for, and told without its ID: it is not for q to cancel.
func (im *Images) warmFor(ctx context.Context, q WarmRequest) (WarmAnswer, error) {
	ops := im.cfg.Operations
	v, err := ops.Get(q.Operation)
	switch {
	case q.Cancel:
		v, err = ops.Cancel(ctx, q.Operation)
	case err != nil: // it is still to be begun, or was before a restart
		v, err = im.warm(q.Name, q.Version)
	}
	if errors.Is(err, content.Running) {
		all := ops.List()
		if i := slices.IndexFunc(all, func(v operations.View) bool {
			return v.Kind == warmKind && v.Target == q.Name && v.State == operations.Running
		}); i >= 0 {
			v, v.ID, err = all[i], "", nil
		}
	}
	return WarmAnswer{v.ID, operations.Node{State: v.State, Done: v.Done, Total: v.Total, Bytes: v.Bytes, Error: v.Error}}, err
}

// WarmAll has all members of this farm fetch all of an image into their caches, in the
// background. It fails in the end if one can't, or is away, and says which.
func (im *Images) WarmAll(name string) (operations.View, error) {
	return im.begin("warm-all", name, func(ctx context.Context, op *operations.Operation) error {
		k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
		if err != nil {
			return err
		}
		w := &everywhere{im: im, op: op, q: WarmRequest{Name: name, Version: k.Version}}
		nodes := append([]Neighbour{{im.cfg.Self, ""}}, im.cfg.Farm(ctx)...)
		var wg sync.WaitGroup
		for _, n := range nodes {
			w.show(n.String(), operations.Node{State: operations.Running})
			wg.Go(func() { w.on(ctx, n) })
		}
		wg.Wait()
		return w.outcome(ctx)
	})
}

// everywhere is one WarmAll.
type everywhere struct {
	im *Images
	op *operations.Operation
	q  WarmRequest
}

// on has one node warm the image, until it is done or can't.
func (w *everywhere) on(ctx context.Context, n Neighbour) {
	q, heard := w.q, time.Now()
	tick := time.Tick(askAgain)
	for {
		a, err := w.ask(context.WithoutCancel(ctx), n, q) // so that what was begun is known, and can be cancelled
		switch {
		case err == nil:
			heard, q.Operation = time.Now(), a.Operation
		case !mayBeAway(err) || time.Since(heard) > awayAfter:
			a.Node = operations.Node{State: operations.Failed, Error: content.Line(err)}
		default:
			a.Node.State = operations.Running
		}
		w.show(n.String(), a.Node)
		if a.Node.State != operations.Running {
			return
		}
		select {
		case <-tick:
		case <-ctx.Done():
			end := operations.Node{State: operations.Cancelled}
			if q.Cancel = true; q.Operation != "" {
				ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
				defer stop()
				if _, err := w.ask(ctx, n, q); err != nil {
					end.Error = content.Line(err)
				}
			}
			w.show(n.String(), end)
			return
		}
	}
}

// mayBeAway reports whether a node that fails so may be about to start, or be back soon.
func mayBeAway(err error) bool {
	return !errors.Is(err, content.ErrNotFound) && !errors.Is(err, content.ErrForbidden) && !errors.Is(err, content.ErrInvalid)
}

func (w *everywhere) ask(ctx context.Context, n Neighbour, q WarmRequest) (a WarmAnswer, err error) {
	if n.ID == w.im.cfg.Self {
		return w.im.warmFor(ctx, q)
	}
	body, err := w.im.cfg.Codec.Marshal(q)
	if err == nil {
		body, err = w.im.cfg.Call(ctx, n.ID, WarmMethod, body)
	}
	if err == nil {
		err = w.im.cfg.Codec.Unmarshal(body, &a)
	}
	return a, err
}

// show has the operation say how far a node is, and all of them together.
func (w *everywhere) show(name string, now operations.Node) {
	w.op.Update(func(v *operations.View) {
		if v.Nodes == nil {
			v.Nodes = map[string]operations.Node{}
		}
		if was := v.Nodes[name]; now.State != operations.Done && now.Done == 0 { // no word of how far it came
			now.Done, now.Total, now.Bytes = was.Done, was.Total, was.Bytes
		}
		nodes := maps.Clone(v.Nodes) // which others may be reading
		nodes[name] = now
		v.Nodes, v.Done, v.Total, v.Bytes = nodes, 0, 0, map[string]int64{}
		ended := 0
		for _, n := range nodes {
			v.Done += n.Done
			v.Total += n.Total
			for source, bytes := range n.Bytes {
				v.Bytes[source] += bytes
			}
			if n.State == operations.Done {
				ended++
			}
		}
		v.Note = fmt.Sprintf("%d of %d nodes have it", ended, len(nodes))
	})
}

// outcome names the nodes that have not got it.
func (w *everywhere) outcome(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var failed []string
	all := 0
	w.op.Update(func(v *operations.View) {
		all = len(v.Nodes)
		for name, n := range v.Nodes {
			if n.State != operations.Done {
				failed = append(failed, fmt.Sprintf("%s: %s %s", name, n.State, n.Error))
			}
		}
	})
	if len(failed) == 0 {
		return nil
	}
	slices.Sort(failed)
	return fmt.Errorf("warm %q: %w: %d of %d nodes have not got it: %s", w.q.Name, content.ErrUnavailable, len(failed), all, strings.Join(failed, "; "))
}
