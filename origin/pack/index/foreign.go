package index

import (
	"context"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// foreign is a pack that no member vouches for: its directory is a claim, and so
// is what lies where it points. It is checked by runs, as far as it is needed.
type foreign struct {
	frames  []pack.Extent // by offset, those that may be asked for
	runs    [pack.SizeMax / content.RunSize]runCheck
	reading singleflight.Group // by number of the run
}

// runCheck is one run of a foreign pack: it is read once.
type runCheck struct {
	read atomic.Bool // or it could not be
	good atomic.Bool // it was read, and each frame is what the directory says
}

func newForeign(id pack.ID, p *gathered) *foreign {
	f := &foreign{}
	for e := range p.decode(id) {
		if e.Raw <= pack.FrameSizeMax {
			f.frames = append(f.frames, e.Extent)
		}
	}
	for n := range f.runs {
		if p.checked&(1<<n) != 0 {
			f.runs[n].good.Store(true)
			f.runs[n].read.Store(true)
		}
	}
	return f
}

// check reads a run once, whoever asks, and reports whether all of it is good.
func (f *foreign) check(ctx context.Context, x *Index, run pack.Run) bool {
	if int(run.N) >= len(f.runs) { // behind the end of any pack
		return false
	}
	r := &f.runs[run.N]
	if !r.read.Load() {
		_, _, _ = f.reading.Do(strconv.Itoa(int(run.N)), func() (any, error) {
			if !r.read.Load() {
				r.good.Store(f.read(ctx, x, run))
				r.read.Store(true)
			}
			return nil, nil
		})
	}
	return r.good.Load()
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

func (f *foreign) checked() (bits uint64) {
	for n := range f.runs {
		if f.runs[n].good.Load() {
			bits |= 1 << n
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
