package garbage

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/fold"
	volumerecords "github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

const (
	diskSize = 8 * content.ChunkSizeDefault
	block    = 4096
)

// disk is a volume that a process has open: what package node/volumes is to it, as far as that speaks to the origin.
type disk struct {
	p     *process
	name  string
	dir   string
	vol   *volume.Volume // nil before it is attached
	folds *fold.Fold
	line  *fold.Tails

	mu   sync.Mutex // guards what follows; nobody waits with it
	base *catalog.Record
	body catalog.Volume
	keep kept
}

// kept is what is on the node's disk of it, beside the journal.
type kept struct {
	Body    []byte
	Waiting []waiting
}

// waiting is a snapshot that is not durable.
type waiting struct {
	Number uint64
	At     content.Position
}

// adopt finds the disks of the life before.
func (p *process) adopt() {
	folders, err := os.ReadDir(filepath.Join(p.dir, "disks"))
	if err != nil {
		p.s.fault(err)
	}
	for _, f := range folders {
		d := &disk{p: p, name: f.Name(), dir: filepath.Join(p.dir, "disks", f.Name())}
		b, err := os.ReadFile(filepath.Join(d.dir, "kept"))
		if err == nil {
			err = json.Unmarshal(b, &d.keep)
		}
		if err == nil {
			d.body, err = catalog.DecodeVolume(p.s.codec, d.keep.Body)
		}
		if err != nil { // it was half made
			_ = os.RemoveAll(d.dir)
			continue
		}
		p.disks[d.name] = d
	}
}

// save keeps what is known on disk. Called with mu.
func (d *disk) save() error {
	var err error
	if d.keep.Body, err = d.body.Encode(d.p.s.codec); err != nil {
		return err
	}
	b, err := json.Marshal(d.keep)
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, "kept")
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (d *disk) close() error {
	if d.vol == nil {
		return nil
	}
	d.line.Close()
	vol := d.vol
	d.vol = nil
	return vol.Close()
}

// drop forgets a disk that is no more.
func (d *disk) drop() error {
	err := errors.Join(d.close(), os.RemoveAll(d.dir))
	d.p.s.mu.Lock()
	defer d.p.s.mu.Unlock()
	delete(d.p.disks, d.name)
	return err
}

func (d *disk) record() catalog.Volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.body
}

func (d *disk) known(r *catalog.Record, body catalog.Volume) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base, d.body = r, body
	return d.save()
}

// revise changes the record as its holder.
func (d *disk) revise(ctx context.Context, change func(*catalog.Volume) error) error {
	for range volumerecords.Tries {
		d.mu.Lock()
		base, body := d.base, d.body
		d.mu.Unlock()
		if base == nil {
			r, now, err := d.p.volumes.Volume(ctx, d.name)
			switch {
			case err != nil:
				return err
			case now.ID != body.ID || now.Holder != body.Holder || now.Incarnation != body.Incarnation:
				return content.ErrFenced
			}
			if err := d.known(&r, now); err != nil {
				return err
			}
			base, body = &r, now
		}
		body.Segments, body.Lineage = slices.Clone(body.Segments), slices.Clone(body.Lineage)
		if err := change(&body); err != nil {
			return err
		}
		r, err := d.p.volumes.PutVolume(ctx, d.name, base, body)
		if err == nil {
			return d.known(&r, body)
		}
		d.mu.Lock()
		d.base = nil
		d.mu.Unlock()
		if !volumerecords.IsOvertaken(err) {
			return err
		}
	}
	return volumerecords.Busy()
}

// source reads a root at the origin.
type source struct {
	r    *pack.Reader
	head pack.Head
}

func (s source) TryReadChunk(uint64, int, []byte) bool { return false }

func (s source) NextData(context.Context, uint64) (uint64, uint64, error) { return 0, 0, io.EOF }

func (s source) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	clear(p)
	top := s.head.Top()
	if top.Node.CID.IsHole() {
		return nil
	}
	n, err := s.r.ReadNode(ctx, s.head.Scope, s.head.Root.Shape().Depth(), top)
	if err != nil {
		return err
	}
	at, ok := n.Page.Child(int(index))
	if !ok {
		return nil
	}
	got, err := pack.ReadMoved(ctx, s.r, []pack.Extent{{CID: n.Node.Entry(int(index)), Location: at}})
	if err == nil {
		copy(p, got[0].Bytes()[off:])
	}
	return err
}

func (d *disk) source(head pack.Head) volume.Source { return source{pack.NewReader(d.p.store), head} }

// attach opens a disk under a new epoch.
func (d *disk) attach(ctx context.Context) error {
	r, body, err := d.p.volumes.Volume(ctx, d.name)
	if errors.Is(err, content.ErrNotFound) || err == nil && (body.ID != d.body.ID || body.Holder != d.body.Holder) {
		return errors.Join(d.drop(), err, content.ErrFenced)
	}
	if err != nil {
		return err
	}
	body.Epoch, body.Incarnation = body.Epoch+1, body.Incarnation+1
	if r, err = d.p.volumes.PutVolume(ctx, d.name, &r, body); err != nil {
		return err
	}
	if err := d.known(&r, body); err != nil {
		return err
	}
	cfg := volume.Config{Dir: d.dir, ID: body.ID, Epoch: body.Epoch, Size: body.Size, Base: body.Base, Kept: d.places()}
	for _, s := range body.Segments {
		if s.Volume != body.ID && !slices.Contains(cfg.Ancestors, s.Volume) {
			cfg.Ancestors = append(cfg.Ancestors, s.Volume)
		}
	}
	if body.Head != nil {
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = d.source(*body.Head), body.Head.Root.Size, body.Head.Root.ChunkSize
	}
	if d.vol, err = volume.Open(cfg); err != nil {
		d.vol = nil
		d.p.s.fault(fmt.Errorf("%s can't open %s: %w", d.p, d.name, err))
		return err
	}
	store := func() (bucket.Bucket, error) { return d.p.store, nil }
	d.line = &fold.Tails{Bucket: store, Dir: func() string { return d.dir }, Ends: d.places, Owned: func(context.Context) error { return nil }}
	d.folds = fold.New(fold.Config{
		Journal: d.vol, Bucket: store, Record: d.record, Revise: d.revise, Root: func(_ context.Context, head pack.Head) (volume.Source, error) { return d.source(head), nil },
		Pending: d.places, SizeAt: func(content.Position) int64 { return content.SizeMax }, Settle: d.settle,
		Tails: func() *fold.Tails { return d.line.Of(d.record(), d.vol) }, Dir: d.dir, Scope: content.Farm(farm), Signer: d.p.signer,
		Packs: new(build.Shared), Now: d.p.now, Log: slog.New(slog.DiscardHandler), At: func(fold.Step) {},
	})
	return nil
}

func (d *disk) places() (out []content.Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.keep.Waiting {
		out = append(out, w.At)
	}
	return out
}

// settle makes those snapshots durable that the record reaches.
func (d *disk) settle(ctx context.Context, now catalog.Volume) error {
	d.mu.Lock()
	all := slices.Clone(d.keep.Waiting)
	d.mu.Unlock()
	for _, w := range all {
		n := 1 + slices.IndexFunc(now.Segments, func(s content.SegmentRef) bool { return s.Through == w.At })
		if n == 0 && now.Base != w.At {
			continue
		}
		if err := d.p.volumes.MakeDurable(ctx, content.Ref{Kind: content.KindSnapshot, Name: d.name, Seq: w.Number}, now, n); err != nil {
			return err
		}
		d.mu.Lock()
		d.keep.Waiting = slices.DeleteFunc(d.keep.Waiting, func(x waiting) bool { return x == w })
		err := d.save()
		d.mu.Unlock()
		d.vol.Release(w.At)
		if err != nil {
			return err
		}
	}
	return nil
}

// create makes a volume, blank or of what another has in the bucket.
func (p *process) create(ctx context.Context, name, policy string, from content.Ref, of catalog.Folded, size int64) error {
	d := &disk{p: p, name: name, dir: filepath.Join(p.dir, "disks", name)}
	d.body = catalog.Volume{Size: size, Epoch: 1, Incarnation: 1, Holder: p.signer.Key.Public(), State: catalog.Attached, Policy: policy, From: from, Folded: of}
	rand.Read(d.body.ID[:])
	gone, _, err := p.volumes.Volume(ctx, name)
	if err == nil || !errors.Is(err, content.ErrNotFound) {
		return errors.Join(err, errors.New("it is there"))
	}
	d.body.Epoch = gone.Version + 1
	if err := volume.Create(d.dir, d.body.ID); err != nil {
		return err
	}
	in := fold.InBucket(ctx, func() (bucket.Bucket, error) { return p.store, nil }, of.Segments)
	if err = journal.Adopt(d.dir, d.body.ID, in, func(string) {}); err == nil {
		d.mu.Lock()
		err = d.save()
		d.mu.Unlock()
	}
	var r catalog.Record
	if err == nil {
		r, err = p.volumes.Register(ctx, name, gone, d.body)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(d.dir))
	}
	d.base = &r
	p.s.mu.Lock()
	p.disks[name] = d
	p.s.mu.Unlock()
	return nil
}

// open returns a disk that is attached, which is made where it is not there.
func (p *process) open(ctx context.Context, name, policy string) (*disk, error) {
	find := func() *disk {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		return p.disks[name]
	}
	d := find()
	if d == nil {
		if err := p.create(ctx, name, policy, content.Ref{}, catalog.Folded{}, diskSize); err != nil {
			return nil, err
		}
		d = find()
	}
	if d.vol == nil {
		return d, d.attach(ctx)
	}
	return d, nil
}

// write writes some blocks, and has the bucket have them where the policy says so.
func (d *disk) write(ctx context.Context, blocks []int64, fill byte) error {
	for _, at := range blocks {
		if err := d.vol.WriteAt(ctx, bytes.Repeat([]byte{fill}, block), at*block, false); err != nil {
			return err
		}
	}
	if err := d.vol.Flush(ctx); err != nil {
		return err
	}
	if line := d.line.Of(d.record(), d.vol); line != nil {
		return line.Persist(ctx, d.vol.End())
	}
	return nil
}

// snapshot names what the disk is now.
func (d *disk) snapshot(ctx context.Context) error {
	at, err := d.folds.Seal(ctx)
	if err != nil {
		return err
	}
	defer d.vol.Release(at)
	var now catalog.Volume
	err = d.revise(ctx, func(v *catalog.Volume) error {
		v.Snapshots++
		v.Shared = max(v.Shared, at.Seq)
		now = *v
		return nil
	})
	if err != nil {
		return err
	}
	body := catalog.Snapshot{
		Volume: d.name, Number: now.Snapshots, ID: now.ID, Size: now.Size, Epoch: now.Epoch, Folded: now.Folded,
		At: at, Durable: now.Through() == at, Holder: d.p.signer.Key.Public(), Created: d.p.now(),
	}
	if !body.Durable {
		if err := d.vol.Keep(at); err != nil {
			return err
		}
		d.mu.Lock()
		d.keep.Waiting = append(d.keep.Waiting, waiting{body.Number, at})
		err := d.save()
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return d.p.volumes.PutSnapshot(ctx, nil, body)
}
