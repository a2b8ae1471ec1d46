package garbage

import (
	"context"
	"errors"
	"slices"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage/repack"
	"github.com/grangemesh/grange/origin/pack"
)

// groupMax bounds the packs that are written anew together: some 10 MiB of memory for what lives of them.
const groupMax = 256

// repack writes condemned packs anew, in groups of one scope.
func (r *run) repack(ctx context.Context, keys []string) error {
	var ids []pack.ID
	for _, key := range keys {
		id, err := pack.ParseKey(key)
		if err != nil {
			return err
		}
		if at := r.marks.packs.find(id); at != nil && at.state.is(isLive) && !at.state.is(isHeld|isStub) {
			ids = append(ids, id)
		}
	}
	for len(ids) > 0 {
		scope := ids[0].Scope()
		n := slices.IndexFunc(ids, func(id pack.ID) bool { return id.Scope() != scope })
		if n < 0 {
			n = len(ids)
		}
		n, err := r.anew(ctx, ids[:min(n, groupMax)])
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// anew writes some packs anew, as many of the first as can be at once, and returns how many.
func (r *run) anew(ctx context.Context, ids []pack.ID) (int, error) {
	g := repack.Group{Packs: ids, Stubs: r.marks.stubsOf(ids)}
	alive, left, err := repack.Live(ctx, r.marks.reader, r.marks.heads, g)
	if errors.Is(err, content.ErrNoSpace) && len(ids) > 1 {
		return r.anew(ctx, ids[:len(ids)/2])
	}
	if err != nil {
		return 0, err
	}
	if err := r.turn.hold(ctx); err != nil {
		return 0, err
	}
	secure := func(ctx context.Context, keys []string) ([]string, error) { return Secure(ctx, r.at, keys, nil) }
	out, err := repack.Write(ctx, repack.Config{Bucket: r.at, Signer: r.cfg.Signer, May: r.turn.hold, Secure: secure, Least: r.least, Now: r.at.now, Log: r.cfg.Log}, g, alive)
	r.report.Repacked.Bytes += out.Freed
	for _, id := range ids {
		if _, moved := out.Moved[id]; moved {
			r.report.Repacked.Objects++
			r.marks.packs.find(id).state |= isStub
		}
	}
	for _, l := range append(left, out.Left...) {
		if !errors.Is(l.Err, content.ErrInvalid) && len(r.report.Broken) < brokenMax {
			r.report.Broken = append(r.report.Broken, Broken{Name: l.Pack.Key(), Error: content.Line(l.Err)})
		}
	}
	r.cfg.Progress(Progress{Phase: "repack", Done: r.report.Repacked.Objects})
	return len(ids), err
}

// least is how many bytes must be won for a pack to be written anew.
func (r *run) least(id pack.ID, size int64) int64 {
	if at := r.marks.packs.find(id); at != nil && at.state.is(isSuspect) {
		return 0
	}
	return leastOf(size)
}

// stubsOf returns the stubs that lead to any of some packs.
func (s *survey) stubsOf(ids []pack.ID) map[pack.ID]pack.ID {
	out := map[pack.ID]pack.ID{}
	for from := range s.moved {
		to := from
		for range chainMax {
			next, moved := s.moved[to]
			if !moved {
				break
			}
			to = next
		}
		if slices.Contains(ids, to) {
			out[from] = to
		}
	}
	return out
}
