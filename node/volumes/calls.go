package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Calls between the nodes of a farm about volumes.
const (
	// CallPrefix is what the methods begin with.
	CallPrefix = "volume/"
	// takenMethod tells a node that a volume of its may be another's by now: it looks.
	takenMethod = CallPrefix + "taken"
	// attachMethod has a node attach a volume that was released for it. It is asked again
	// until it says that it is done.
	attachMethod = CallPrefix + "attach"

	// tellTimeout bounds what a taker waits for who held the volume: it may be gone.
	tellTimeout = 3 * time.Second
	// answerWait is how long a call is kept waiting for what it has begun: longer, and its
	// asker takes it for lost.
	answerWait = time.Second
	// moveTimeout bounds how long the other node may take to attach a volume, and
	// moveAgain how soon it is asked again that did not answer.
	moveTimeout = 2 * time.Minute
	moveAgain   = 200 * time.Millisecond
)

type attachRequest struct {
	Name string `json:"name"`
	// Move is of the asker's making, so that a request that is sent again is known.
	Move      uint64 `json:"move"`
	Transport string `json:"transport"`
}

type attachAnswer struct {
	Done bool   `json:"done"`
	View View   `json:"view"`
	Err  string `json:"error,omitempty"`
}

// moves are the volumes that other nodes have moved here. Safe for concurrent use.
type moves struct {
	mu sync.Mutex
	of map[string]*move // by name, the last one
}

type move struct {
	id     uint64
	done   chan struct{} // closed when answer is final
	answer attachAnswer
}

// Answer answers another node of this farm.
func (v *Volumes) Answer(ctx context.Context, from trust.Identity, method string, body []byte) ([]byte, error) {
	if !from.Role.IsMember() || from.Farm != v.cfg.Farm {
		return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
	}
	switch method {
	case takenMethod:
		return nil, v.hearTaken(ctx, string(body))
	case snapshotMethod:
		return v.snapshotFor(ctx, body)
	case attachMethod:
		var q attachRequest
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, fmt.Errorf("call %s: %w: %w", method, content.ErrInvalid, err)
		}
		return json.Marshal(v.attachFor(ctx, q))
	}
	return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
}

// errand has something done by Run, and waits for it a little. It reports whether that has
// begun.
func (v *Volumes) errand(ctx context.Context, do func(context.Context)) bool {
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	select {
	case v.errands <- func(ctx context.Context) { defer close(done); do(ctx) }:
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return true
}

// hearTaken looks at the record of a volume of which a member says that it is another's.
func (v *Volumes) hearTaken(ctx context.Context, name string) error {
	a := v.device(name)
	if a == nil || a.vol == nil {
		return nil
	}
	v.errand(ctx, func(ctx context.Context) {
		if err := a.happen(ctx, right.Due{}); err != nil {
			v.cfg.Log.Debug("a volume may have been taken over", "volume", name, "err", err)
		}
	})
	return nil
}

// tell says to who held a volume that it does not any more. It may be away.
func (v *Volumes) tell(ctx context.Context, who trust.PublicKey, name string) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if _, err := v.cfg.Call(ctx, who, takenMethod, []byte(name)); err != nil {
		v.cfg.Log.Warn("the node that a volume was taken over from can't be told; it stops when it sees the record", "volume", name, "node", who, "err", err)
	}
}

// attachFor attaches a volume that another node moves here.
func (v *Volumes) attachFor(ctx context.Context, q attachRequest) attachAnswer {
	v.moves.mu.Lock()
	m := v.moves.of[q.Name]
	begun := m != nil && m.id == q.Move
	if !begun {
		m = &move{id: q.Move, done: make(chan struct{})}
		v.moves.of[q.Name] = m
	}
	v.moves.mu.Unlock()
	if !begun && !v.errand(ctx, func(ctx context.Context) {
		defer close(m.done)
		view, _, err := v.Put(ctx, q.Name, Spec{Transport: q.Transport})
		if m.answer = (attachAnswer{Done: true, View: view}); err != nil {
			m.answer.Err = content.Line(err)
		}
	}) {
		v.moves.mu.Lock()
		delete(v.moves.of, q.Name)
		v.moves.mu.Unlock()
	}
	wait, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	select {
	case <-m.done:
		return m.answer
	case <-wait.Done():
		return attachAnswer{}
	}
}

// Move has another node of the farm, by its name or ID, attach a volume of this node.
// What was written goes to the bucket first; NBD clients that connect anew go on there, a
// disk must not be in use. Where the other does not attach it, this node
// has it again.
func (v *Volumes) Move(ctx context.Context, name, node string) (View, error) {
	defer v.turn(name)()
	view, err := v.move(ctx, name, node)
	if err != nil {
		return View{}, fmt.Errorf("move volume %q: %w", name, err)
	}
	return view, nil
}

func (v *Volumes) move(ctx context.Context, name, node string) (View, error) {
	to, who, err := v.cfg.Member(ctx, node)
	if err != nil {
		return View{}, err
	}
	e, ok := v.index.Get(name)
	a := v.device(name)
	switch {
	case !ok:
		return View{}, v.elsewhere(ctx, name)
	case to == v.cfg.Self:
		return v.Get(name)
	case a == nil || a.vol == nil:
		return View{}, fmt.Errorf("%w: it is not attached here; attach it there", content.ErrConflict)
	}
	if _, err := v.cfg.Call(ctx, to, takenMethod, []byte(name)); err != nil { // before anything is given up
		return View{}, fmt.Errorf("%s does not answer: %w", who, err)
	}
	if err := v.detach(ctx, name, a.disk == nil); err != nil {
		return View{}, err
	}
	if e, _ = v.index.Get(name); !e.Empty {
		return View{}, v.takeBack(ctx, name, fmt.Errorf("%w: not all that was written could be brought to the bucket", content.ErrUnavailable))
	}
	view, err := v.askAttach(ctx, to, attachRequest{Name: name, Move: rand.Uint64(), Transport: e.Transport})
	if err != nil {
		return View{}, v.takeBack(ctx, name, fmt.Errorf("%s did not attach it: %w", who, err))
	}
	return view, nil
}

// takeBack attaches a volume again that could not be moved.
func (v *Volumes) takeBack(ctx context.Context, name string, why error) error {
	e, _ := v.index.Get(name)
	if err := v.reattach(context.WithoutCancel(ctx), e, Spec{Transport: terms.Auto}); err != nil {
		return errors.Join(why, fmt.Errorf("nor did this node, where it is detached now: %w", err))
	}
	return fmt.Errorf("%w; it is attached here again", why)
}

// askAttach asks a node to attach a volume until that says how it went.
func (v *Volumes) askAttach(ctx context.Context, to trust.PublicKey, q attachRequest) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return View{}, err
	}
	again := time.NewTicker(moveAgain)
	defer again.Stop()
	for {
		var a attachAnswer
		b, err := v.cfg.Call(ctx, to, attachMethod, body)
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		switch {
		case err == nil && a.Done && a.Err == "":
			return a.View, nil
		case err == nil && a.Done:
			return View{}, errors.New(strings.TrimSpace(a.Err))
		case err != nil && !errors.Is(err, content.ErrUnavailable) && ctx.Err() == nil:
			return View{}, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return View{}, cmp.Or(err, context.Cause(ctx))
		}
	}
}
