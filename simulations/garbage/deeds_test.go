package garbage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	numbers "math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
)

const (
	// grace is that of all collections.
	grace = garbage.GraceDefault
	// seedsMax is how many chunks there are in all: few, so that what is imported was there before, and is dead by now.
	seedsMax  = 12
	chunksMax = 6 // of an image or tree
)

// chunk is one that is like no other and does not compress.
func chunk(seed int) []byte {
	b := make([]byte, 0, content.ChunkSizeDefault)
	r := numbers.NewPCG(uint64(seed), 1)
	for len(b) < content.ChunkSizeDefault {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

// some are the seeds of a content.
func (s *stage) some() []int {
	out := make([]int, 1+s.random.IntN(chunksMax))
	for i := range out {
		out[i] = s.random.IntN(seedsMax)
	}
	return out
}

func pick[T any](s *stage, from ...T) T { return from[s.random.IntN(len(from))] }

// deed is something that a node is asked for; what is drawn is drawn before it begins.
type deed struct {
	weight int
	draw   func(s *stage, p *process) (what string, do func(context.Context) error)
}

func deeds() []deed {
	return []deed{
		{6, publish}, {3, plant}, {3, tag}, {4, layOut}, {7, remove}, {3, stow}, {2, lend}, {20, collect},
		{7, folds}, {3, snapshots}, {2, unsnaps}, {3, purges}, {3, forks},
	}
}

// drawn draws one.
func (s *stage) drawn(from []deed) deed {
	total := 0
	for _, d := range from {
		total += d.weight
	}
	n := s.random.IntN(total)
	for _, d := range from {
		if n -= d.weight; n < 0 {
			return d
		}
	}
	return from[0]
}

var errOperation = errors.New("it has failed") // whose cause is text alone

// ended waits for an operation.
func (p *process) ended(v operations.View, err error) error {
	if err == nil {
		v, err = p.work.Wait(context.Background(), v.ID)
	}
	if err == nil && v.Error != "" {
		err = fmt.Errorf("%w: %s", errOperation, v.Error)
	}
	return err
}

// file has a disk of some chunks in a file.
func (p *process) file(seeds []int) (string, error) {
	f, err := os.CreateTemp(filepath.Join(p.dir, "files"), "disk-*")
	if err != nil {
		return "", err
	}
	for _, seed := range seeds {
		if _, err = f.Write(chunk(seed)); err != nil {
			break
		}
	}
	return f.Name(), errors.Join(err, f.Close())
}

func publish(s *stage, p *process) (string, func(context.Context) error) {
	name, seeds := pick(s, "a", "b", "c"), s.some()
	return fmt.Sprintf("publish %s of %v", name, seeds), func(ctx context.Context) error { return p.publish(ctx, name, seeds) }
}

func (p *process) publish(ctx context.Context, name string, seeds []int) error {
	path, err := p.file(seeds)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	err = p.ended(p.images.Import(ctx, name, images.ImportRequest{Options: convert.Options{Path: path, Format: "raw"}, Replace: true}))
	if err == nil {
		p.acks(content.KindImage, name)
	}
	return err
}

// files has some files in a folder.
func (p *process) files(seeds []int) (string, error) {
	dir, err := os.MkdirTemp(filepath.Join(p.dir, "files"), "tree-*")
	for i := 0; i < len(seeds) && err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), chunk(seeds[i]), 0o600)
	}
	return dir, err
}

func plant(s *stage, p *process) (string, func(context.Context) error) {
	name, seeds := pick(s, "t", "u"), s.some()
	return fmt.Sprintf("publish tree %s of %v", name, seeds), func(ctx context.Context) error {
		dir, err := p.files(seeds)
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		err = p.ended(p.images.ImportTree(ctx, name, images.ImportRequest{Options: convert.Options{Path: dir, Format: convert.Dir}, Replace: true}))
		if err == nil {
			p.acks(content.KindTree, name)
		}
		return err
	}
}

func tag(s *stage, p *process) (string, func(context.Context) error) {
	name, tag := pick(s, "a", "b", "c", "t", "u"), pick(s, "x", "y")
	return fmt.Sprintf("tag %s as %s", name, tag), func(ctx context.Context) error {
		_, err := p.images.Tag(ctx, name, tag)
		if err == nil {
			p.acks(content.KindTag, tag)
		}
		return err
	}
}

// layOut lays some chunks of an image out, in any order.
func layOut(s *stage, p *process) (string, func(context.Context) error) {
	name, order := pick(s, "a", "b", "c", "x"), s.random.Perm(chunksMax)[:1+s.random.IntN(chunksMax-1)]
	return fmt.Sprintf("lay out %v of %s", order, name), func(ctx context.Context) error { return p.layOut(ctx, name, order) }
}

func (p *process) layOut(ctx context.Context, name string, order []int) error {
	k, err := p.names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return err
	}
	list := &catalog.Boot{Root: k.Root, Runs: 1}
	for _, i := range order {
		if i := uint64(i); i < k.Head.Root.Shape().Chunks {
			list.Stages = append(list.Stages, catalog.BootStage{Share: 1, Chunks: []uint64{i}})
		}
	}
	if err = p.images.LayOut(ctx, updates{}, name, list); err == nil {
		p.acks(k.Kind, name)
	}
	return err
}

func remove(s *stage, p *process) (string, func(context.Context) error) {
	name := pick(s, "a", "b", "c", "t", "u", "x", "y")
	return "remove " + name, func(ctx context.Context) error {
		_, err := p.images.Remove(ctx, name)
		return err
	}
}

// updates takes what long work says of itself.
type updates struct{}

func (updates) Update(change func(*operations.View)) {
	change(&operations.View{Bytes: map[string]int64{}})
}
func (updates) Pass(ctx context.Context) error { return ctx.Err() }

// stow puts an instance away, or forgets it.
func stow(s *stage, p *process) (string, func(context.Context) error) {
	name, seeds, ends := fmt.Sprintf("i%d", p.at), s.some(), s.chance(3)
	if ends {
		return "obliterate " + name, func(ctx context.Context) error {
			k, err := p.names.Lookup(ctx, content.KindInstance, name, true)
			if err == nil {
				_, err = p.commit(ctx, catalog.Change{Kind: content.KindInstance, Name: name, Farm: farm, Base: &k.Record, Delete: true})
			}
			return err
		}
	}
	return fmt.Sprintf("put %s away as %v", name, seeds), func(ctx context.Context) error { return p.stow(ctx, name, seeds) }
}

func (p *process) stow(ctx context.Context, name string, seeds []int) error {
	dir, err := p.files(seeds)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	body := catalog.Instance{Epoch: 1, Incarnation: 1, Holder: p.signer.Key.Public(), State: catalog.Attached, Spec: []byte("x")}
	rand.Read(body.ID[:])
	var base *catalog.Record
	switch k, err := p.names.Lookup(ctx, content.KindInstance, name, true); {
	case err == nil:
		if body, err = catalog.DecodeInstance(p.s.codec, k.Body); err != nil {
			return err
		}
		base = &k.Record
	case !errors.Is(err, content.ErrNotFound):
		return err
	}
	made, _, err := p.images.Stow(ctx, updates{}, images.ToStow{Dir: dir, Scope: content.Farm(farm), Lineage: body.Lineage})
	if err != nil {
		return err
	}
	body.Head, body.Lineage, body.Saved = &made.Head, made.Lineage, p.now().UnixMilli()
	b, err := body.Encode(p.s.codec)
	if err == nil {
		_, err = p.commit(ctx, catalog.Change{Kind: content.KindInstance, Name: name, Farm: farm, Base: base, Body: b})
	}
	return err
}

// lend leases what a name stands for, and reads it to its end, whatever becomes of the name.
func lend(s *stage, p *process) (string, func(context.Context) error) {
	name := pick(s, "a", "b", "t", "x")
	wait := time.Duration(s.random.Int64N(int64(2 * grace)))
	return fmt.Sprintf("read %s by a lease for %s", name, wait.Round(time.Hour)), func(ctx context.Context) error { return p.lend(ctx, name, wait) }
}

func (p *process) lend(ctx context.Context, name string, wait time.Duration) error {
	k, err := p.names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return err
	}
	body := catalog.Lease{Folded: catalog.Folded{Head: k.Head}, Holder: p.signer.Key.Public(), What: "a test"}
	b, err := body.Encode(p.s.codec)
	if err != nil {
		return err
	}
	what := catalog.LeaseName(p.signer.Key.Public(), k.Root)
	var base *catalog.Record
	if old, err := p.names.Lookup(ctx, content.KindLease, what, true); err == nil {
		base = &old.Record
	} else if !errors.Is(err, content.ErrNotFound) {
		return err
	}
	r, err := p.commit(ctx, catalog.Change{Kind: content.KindLease, Name: what, Farm: farm, Base: base, Body: b})
	if err != nil {
		return err
	}
	reader := pack.NewReader(p.store)
	for _, d := range []time.Duration{0, wait} {
		if err := p.s.wait(ctx, d); err != nil {
			return err
		}
		report, err := verify.Config{Reader: reader}.Image(ctx, *k.Head)
		if err != nil {
			return err
		}
		if now, ok := p.names.Held(content.KindLease, what); !ok || now.Commit != r.Commit {
			return errors.New("the lease is another deed's by now")
		}
		if err := report.Err(); err != nil {
			p.s.fault(fmt.Errorf("%s reads %s by a lease: %w", p, name, err))
		}
	}
	_, err = p.commit(ctx, catalog.Change{Kind: content.KindLease, Name: what, Farm: farm, Base: &r, Delete: true})
	return err
}

// collect is a run of a collection.
func collect(s *stage, p *process) (string, func(context.Context) error) {
	waste := pick(s, 0.01, 0.01, -1)
	return "collect", func(ctx context.Context) error { return p.collect(ctx, waste) }
}

func (p *process) collect(ctx context.Context, waste float64) error {
	r, err := garbage.Run(ctx, garbage.Config{
		Source: garbage.Source{Bucket: p.store, Verifier: p.s.check, Now: p.now}, Signer: p.signer, Grace: grace, Yes: true, Waste: waste,
	})
	p.s.note("%s: epoch %d: marked %d, deleted %d, repacked %d, waiting %d, broken %v", p, r.Epoch, r.Marked.Objects, r.Deleted.Objects, r.Repacked.Objects, r.Waiting.Objects, r.Broken)
	return err
}
