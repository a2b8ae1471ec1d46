package index

import (
	"context"
	"sync"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// foreign is a pack that no member vouches for: its directory is a claim, and so
// is what lies where it points. It is checked by runs, as far as it is needed.
type foreign struct {
	frames []pack.Extent // by offset, those that may be asked for

	mu   sync.Mutex // guards runs
	runs map[uint32]*runCheck
}

// runCheck is one run of a foreign pack that was read, or is being read.
type runCheck struct {
	done chan struct{} // closed once good says something
	good bool          // each frame is what the directory says
}

func newForeign(id pack.ID, p *gathered) *foreign {
	f := &foreign{runs: make(map[uint32]*runCheck)}
	for e := range p.decode(id) {
		if e.Raw <= pack.FrameSizeMax {
			f.frames = append(f.frames, e.Extent)
		}
	}
	for n := range uint32(pack.SizeMax / content.RunSize) {
		if p.checked&(1<<n) != 0 {
			f.runs[n] = &runCheck{closed(), true}
		}
	}
	return f
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// check reads a run once, whoever asks, and reports whether all of it is good.
func (f *foreign) check(ctx context.Context, x *Index, run pack.Run) bool {
	f.mu.Lock()
	r, begun := f.runs[run.N]
	if !begun {
		r = &runCheck{done: make(chan struct{})}
		f.runs[run.N] = r
	}
	f.mu.Unlock()
	if !begun {
		r.good = f.read(ctx, x, run)
		close(r.done)
	}
	select {
	case <-r.done:
		return r.good
	case <-ctx.Done():
		return false
	}
}

func (f *foreign) read(ctx context.Context, x *Index, run pack.Run) bool {
	var frames []pack.Extent
	for _, e := range f.frames {
		if e.Run() == run {
			frames = append(frames, e)
		}
	}
	_, err := x.reader.ReadFrames(ctx, frames)
	if err != nil && ctx.Err() == nil {
		x.cfg.Log.Warn("frames of a pack that no member vouches for are not reused", "pack", run.Pack, "run", run.N, "error", err)
	}
	return err == nil
}

// checked returns the bits of the runs that were found good.
func (f *foreign) checked() (bits uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, r := range f.runs {
		select {
		case <-r.done:
			if r.good {
				bits |= 1 << n
			}
		default:
		}
	}
	return bits
}

// Save remembers in the cache which frames were hashed, so that the next importer
// of this host needs not do so again.
func (x *Index) Save() error {
	checked := make(map[pack.ID]uint64)
	for n, f := range x.foreign {
		if bits := f.checked(); bits != 0 {
			checked[x.packs[n]] = bits
		}
	}
	if len(checked) == 0 || x.cfg.Dir == "" {
		return nil
	}
	packs, sources, err := readCacheFile(x.cfg)
	changed := false
	for i, p := range packs {
		packs[i].Checked |= checked[p.ID]
		changed = changed || packs[i].Checked != p.Checked
	}
	if err != nil || !changed {
		return err
	}
	return replaceCacheFile(x.cfg, packs, sources)
}
