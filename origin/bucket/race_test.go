package bucket_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

const racers = 8

// oneWins lets writers race for each version of an object: first to make it,
// then to replace the one before.
func oneWins(t *testing.T, b bucket.Bucket) {
	etag := ""
	for round := range soak.Rounds(100) {
		cond := bucket.IfAbsent()
		if etag != "" {
			cond = bucket.IfMatch(etag)
		}
		tags := make([]string, racers)
		errs := make([]error, racers)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				<-start
				info, err := b.Put(t.Context(), "records/race", bucket.Bytes(fmt.Appendf(nil, "round %d writer %d", round, i)), cond)
				tags[i], errs[i] = info.ETag, err
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: writers %d and %d both won", round, winner, i)
			case err == nil:
				winner, etag = i, tags[i]
			case !errors.Is(err, bucket.ErrPrecondition):
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won", round)
		}
		holds(t, b, "records/race", fmt.Sprintf("round %d writer %d", round, winner), etag)
	}
}

// step is one call on the object, and what came of it. States and results are
// ETags, as each write has other bytes; "" is an absent object.
type step struct {
	op   string // get, create, replace, put, delete
	etag string // that a replace was made from
}

type result struct {
	etag string // read or written
	won  bool
}

func object() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(string), input.(step), output.(result)
			switch in.op {
			case "get":
				return out.etag == now, now
			case "delete":
				return true, ""
			case "put":
				return true, out.etag
			}
			if holds := now == in.etag; holds != out.won { // a create is made from ""
				return false, now
			} else if holds {
				now = out.etag
			}
			return true, now
		},
	}
}

// linearizable lets clients read, write and delete one object at will, and looks
// for one order of the calls that explains every answer.
func linearizable(t *testing.T, b bucket.Bucket) {
	const clients, calls, within = 5, 12, 20 * time.Second
	for round := range soak.Rounds(20) {
		key := fmt.Sprintf("records/%d", round)
		histories := make([][]porcupine.Operation, clients)
		errs := make([]error, clients)
		began := time.Now()
		var wg sync.WaitGroup
		for c := range clients {
			random := rand.New(rand.NewPCG(uint64(round), uint64(c)))
			wg.Go(func() {
				seen := ""
				for n := range calls {
					in := step{op: []string{"get", "get", "create", "replace", "replace", "put", "delete"}[random.IntN(7)]}
					if in.op == "replace" {
						if in.etag = seen; seen == "" {
							in.op = "create"
						}
					}
					call := time.Since(began).Nanoseconds()
					out, err := take(t, b, key, in, fmt.Sprintf("%d-%d-%d", round, c, n))
					if err != nil {
						errs[c] = err
						return
					}
					if in.op == "get" || out.won {
						seen = out.etag
					}
					histories[c] = append(histories[c], porcupine.Operation{ClientId: c, Input: in, Call: call, Output: out, Return: time.Since(began).Nanoseconds()})
				}
			})
		}
		wg.Wait()
		ok(t, errors.Join(errs...))
		var all []porcupine.Operation
		for _, h := range histories {
			all = append(all, h...)
		}
		if got := porcupine.CheckOperationsTimeout(object(), all, within); got != porcupine.Ok {
			t.Fatalf("round %d: %s: no order of these calls explains the answers: %+v", round, got, all)
		}
	}
}

// take carries out a step.
func take(t *testing.T, b bucket.Bucket, key string, in step, body string) (result, error) {
	var cond bucket.Condition
	switch in.op {
	case "get":
		_, info, err := bucket.ReadAll(t.Context(), b, key, 1<<10)
		if errors.Is(err, content.ErrNotFound) {
			return result{}, nil
		}
		return result{etag: info.ETag}, err
	case "delete":
		return result{}, b.Delete(t.Context(), key)
	case "create":
		cond = bucket.IfAbsent()
	case "replace":
		cond = bucket.IfMatch(in.etag)
	}
	info, err := b.Put(t.Context(), key, bucket.Bytes([]byte(strings.Repeat(body, 3))), cond)
	if errors.Is(err, bucket.ErrPrecondition) {
		return result{}, nil
	}
	return result{info.ETag, true}, err
}
