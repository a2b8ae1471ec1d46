// Package moves has a volume move to another node: who gives it up asks until it is told how
// that went, and who gets it attaches it, however often it is asked.
package moves

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// answerWait is how long a call is kept waiting for what it has begun: longer, and its
	// asker takes it for lost.
	answerWait = time.Second
	// sayWait is what a taker's clients wait for who held the volume, which may be gone;
	// it is told beside each sayAgain then, which sayTimeout bounds.
	sayWait, sayAgain, sayTimeout = 500 * time.Millisecond, 5 * time.Second, 3 * time.Second
	// moveTimeout bounds how long the other node may take to attach a volume, and
	// moveAgain how soon it is asked again that did not answer.
	moveTimeout = 2 * time.Minute
	moveAgain   = 200 * time.Millisecond
)

// Request has a node attach a volume that was released for it. It is asked again until it
// says that it is done.
type Request struct {
	Name      string           `json:"name"`
	ID        content.VolumeID `json:"id"`
	Transport string           `json:"transport"`
}

// Answer says how that went, when it is done.
type Answer struct {
	Done bool       `json:"done"`
	View terms.View `json:"view"`
	Err  string     `json:"error,omitempty"`
}

// Errands are what a node does for who waits for an answer; who receives them does them.
type Errands chan func(context.Context)

// Do has something done by Run, and waits for it a little. It reports whether that has begun.
func (e Errands) Do(ctx context.Context, do func(context.Context)) bool {
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	if !e.Begin(ctx, func(ctx context.Context) { defer close(done); do(ctx) }) {
		return false
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return true
}

// Begin has it done, and does not wait for that; false where nobody does errands by the end of ctx.
func (e Errands) Begin(ctx context.Context, do func(context.Context)) bool {
	select {
	case e <- do:
		return true
	case <-ctx.Done():
		return false
	}
}

// Insist has something said: now, and where that fails later again and again for so long, as
// an errand. It returns how the first time went.
func (e Errands) Insist(ctx context.Context, most time.Duration, say func(context.Context) error) error {
	try := func(ctx context.Context, within time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return say(ctx)
	}
	err := try(ctx, sayWait)
	if err == nil {
		return nil
	}
	brief, cancel := context.WithTimeout(ctx, sayWait)
	defer cancel()
	e.Begin(brief, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		again := time.Tick(sayAgain)
		for try(ctx, sayTimeout) != nil {
			select {
			case <-again:
			case <-ctx.Done():
				return
			}
		}
	})
	return err
}

// Moves are the volumes that other nodes move here, each attached by an errand. Safe for
// concurrent use.
type Moves struct {
	Errands Errands

	under singleflight.Group // by name
}

// Answer answers a Request with what attach says; see Attach.
func (m *Moves) Answer(ctx context.Context, body []byte, attach func(context.Context, Request) (terms.View, error)) ([]byte, error) {
	var q Request
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("attach what is moved here: %w: %w", content.ErrInvalid, err)
	}
	return json.Marshal(m.Attach(ctx, q, func(ctx context.Context) (terms.View, error) { return attach(ctx, q) }))
}

// Attach answers who moves a volume here: attach is called once for all that ask meanwhile.
// Whoever asks again when that is over, as the answer was lost, has it called once more: it
// finds the volume attached, or tries again what failed.
func (m *Moves) Attach(ctx context.Context, q Request, attach func(context.Context) (terms.View, error)) Answer {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	done := m.under.DoChan(q.Name, func() (any, error) {
		ended := make(chan Answer, 1)
		if !m.Errands.Begin(ctx, func(ctx context.Context) {
			view, err := attach(ctx)
			a := Answer{Done: true, View: view}
			if err != nil {
				a.Err = content.Line(err)
			}
			ended <- a
		}) {
			return Answer{}, nil
		}
		return <-ended, nil
	})
	select {
	case x := <-done:
		return x.Val.(Answer)
	case <-ctx.Done():
		return Answer{}
	}
}

// Ask asks a node to attach a volume until that says how it went.
func Ask(ctx context.Context, call func(context.Context, []byte) ([]byte, error), q Request) (terms.View, error) {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return terms.View{}, err
	}
	again := time.Tick(moveAgain)
	for {
		var a Answer
		b, err := call(ctx, body)
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		switch {
		case err == nil && a.Done && a.Err == "":
			return a.View, nil
		case err == nil && a.Done:
			return terms.View{}, errors.New(strings.TrimSpace(a.Err))
		case err != nil && !errors.Is(err, content.ErrUnavailable) && ctx.Err() == nil:
			return terms.View{}, err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return terms.View{}, cmp.Or(err, context.Cause(ctx))
		}
	}
}

// Run does errands, each as it comes, until ctx ends.
func (e Errands) Run(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	for {
		select {
		case do := <-e:
			under.Go(func() { do(ctx) })
		case <-ctx.Done():
			return nil
		}
	}
}
