package garbage

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
)

// alone has a deed be the only one on a disk of a process; nil where one is.
func (p *process) alone(name string, do func(context.Context) error) func(context.Context) error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.busy[name] {
		return nil
	}
	p.busy[name] = true
	return func(ctx context.Context) error {
		defer func() {
			p.s.mu.Lock()
			defer p.s.mu.Unlock()
			p.busy[name] = false
		}()
		return do(ctx)
	}
}

// diskOf is the name of one of a node's disks, and its policy.
func (s *stage) diskOf(p *process) (name, policy string) {
	policy = pick(s, catalog.PolicyLocal, catalog.PolicyOrigin)
	return fmt.Sprintf("%s%d-%s", pick(s, "v", "w"), p.at, policy), policy
}

// folds writes to a disk, and folds it.
func folds(s *stage, p *process) (string, func(context.Context) error) {
	name, policy := s.diskOf(p)
	blocks := make([]int64, 1+s.random.IntN(12))
	for i := range blocks {
		blocks[i] = s.random.Int64N(diskSize / block)
	}
	fill, want := byte(s.random.Uint32()), pick(s, fold.Safe, fold.Safe, fold.Chunks)
	return fmt.Sprintf("write %d blocks to %s and fold it: %v", len(blocks), name, want), p.alone(name, func(ctx context.Context) error {
		d, err := p.open(ctx, name, policy)
		if err == nil {
			err = d.write(ctx, blocks, fill)
		}
		if err == nil {
			err = d.folds.Run(ctx, want)
		}
		return err
	})
}

// snapshots names what a disk is.
func snapshots(s *stage, p *process) (string, func(context.Context) error) {
	name, policy := s.diskOf(p)
	return "snapshot of " + name, p.alone(name, func(ctx context.Context) error {
		d, err := p.open(ctx, name, policy)
		if err == nil {
			err = d.write(ctx, []int64{1, 2}, 7)
		}
		if err == nil {
			err = d.snapshot(ctx)
		}
		return err
	})
}

// named are the names of one kind that there are, as the director sees them.
func (s *stage) named(kind content.Kind) (out []garbage.Record) {
	for _, r := range s.records() {
		if r.Kind == kind && r.Err == nil {
			out = append(out, r)
		}
	}
	return out
}

// unsnaps removes a snapshot of any volume.
func unsnaps(s *stage, p *process) (string, func(context.Context) error) {
	all := s.named(content.KindSnapshot)
	if len(all) == 0 {
		return "", nil
	}
	name := all[s.random.IntN(len(all))].Name
	return "remove " + name, func(ctx context.Context) error {
		_, err := p.volumes.RemoveSnapshot(ctx, name, content.VolumeID{})
		return err
	}
}

// purges removes a disk, with its snapshots or without.
func purges(s *stage, p *process) (string, func(context.Context) error) {
	name, _ := s.diskOf(p)
	too := s.chance(2)
	return fmt.Sprintf("remove %s, with its snapshots: %t", name, too), p.alone(name, func(ctx context.Context) error { return p.purge(ctx, name, too) })
}

func (p *process) purge(ctx context.Context, name string, snapshots bool) error {
	r, body, err := p.volumes.Volume(ctx, name)
	if err != nil {
		return err
	}
	if body.Holder != p.signer.Key.Public() {
		return content.Held
	}
	if err := p.volumes.Registry.Delete(ctx, r); err != nil {
		return err
	}
	p.s.mu.Lock()
	d := p.disks[name]
	p.s.mu.Unlock()
	if d != nil {
		err = d.drop()
	}
	if snapshots {
		err = errors.Join(err, p.volumes.Purge(ctx, p.volumes.Registry.Snapshots(ctx, name)))
	}
	return err
}

// forks makes a disk of what another has in the bucket, or of a snapshot.
func forks(s *stage, p *process) (string, func(context.Context) error) {
	all := append(s.named(content.KindVolume), s.named(content.KindSnapshot)...)
	if len(all) == 0 {
		return "", nil
	}
	from := all[s.random.IntN(len(all))]
	name, policy := s.diskOf(p)
	return fmt.Sprintf("fork %s as %s", from.Label(), name), p.alone(name, func(ctx context.Context) error { return p.fork(ctx, name, policy, from) })
}

func (p *process) fork(ctx context.Context, name, policy string, from garbage.Record) error {
	if from.Kind == content.KindVolume {
		body, err := p.volumes.Share(ctx, from.Name)
		if err != nil {
			return err
		}
		return p.create(ctx, name, policy, content.Ref{Kind: content.KindVolume, Name: from.Name}, body.Folded, body.Size)
	}
	_, body, err := p.volumes.Snapshot(ctx, from.Name)
	if err != nil {
		return err
	}
	if !body.Durable {
		return errors.New("it is not durable")
	}
	return p.create(ctx, name, policy, body.Ref(), body.Folded, body.Size)
}

// mendVolume has the record of a volume whose last commit nobody was told of name what is there.
func (p *process) mendVolume(ctx context.Context, name string) error {
	p.s.mu.Lock()
	d := p.disks[name]
	p.s.mu.Unlock()
	if d == nil {
		err := p.purge(ctx, name, false)
		if errors.Is(err, content.Held) { // its record says that others name what it has, as somebody meant to
			_, err = p.volumes.Share(ctx, name)
		}
		return err
	}
	d, err := p.open(ctx, name, "")
	if err == nil {
		err = d.write(ctx, []int64{3}, 9)
	}
	for n := 0; err == nil; n++ {
		if err = d.folds.Run(ctx, fold.Chunks); !errors.Is(err, content.ErrConflict) || n == 2 {
			break
		}
		err = nil // the record was another than it was known to be: the next one goes on from there
	}
	return err
}
