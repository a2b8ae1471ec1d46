package volumes

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/identity"
)

// List returns all volumes of this node, by name; folders that can't be read come last.
func (v *Volumes) List() []terms.View {
	var out []terms.View
	for _, e := range v.index.Sorted() {
		out = append(out, v.view(e))
	}
	for _, folder := range slices.Sorted(maps.Keys(v.index.Broken)) {
		out = append(out, v.viewBroken(folder))
	}
	return out
}

// Failing returns the names of the volumes that want a look: they can't be served, have
// stopped, or find no room for what is written, here or with their holders.
func (v *Volumes) Failing() []string {
	var out []string
	for _, view := range v.List() {
		if view.State == terms.StateFailed || view.State == terms.StateFull || view.Short {
			out = append(out, view.Name)
		}
	}
	return out
}

// Get returns one volume of this node.
func (v *Volumes) Get(name string) (terms.View, error) {
	if e, ok := v.index.Get(name); ok {
		return v.view(e), nil
	}
	if v.index.Broken[name] != nil {
		return v.viewBroken(name), nil
	}
	return terms.View{}, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
}

func (v *Volumes) viewBroken(folder string) terms.View {
	return terms.View{Name: folder, State: terms.StateFailed, Detail: content.Line(v.index.Broken[folder]), Node: v.cfg.NodeID, Farm: v.cfg.Farm}
}

func (v *Volumes) view(e index.Entry) terms.View {
	out := terms.OfRecord(v.codec, e.Name, v.cfg.Farm, e.Volume)
	out.State, out.Transport, out.Node, out.NodeName = terms.StateDetached, e.Transport, v.cfg.NodeID, v.cfg.Called(v.cfg.Self)
	for _, holder := range e.Holders {
		out.HolderNames = append(out.HolderNames, cmp.Or(v.cfg.Called(holder), identity.PeerID(holder).String()))
	}
	d := v.device(e.Name)
	switch {
	case d == nil && e.Empty:
		out.State, out.Node, out.NodeName = terms.StateReleased, "", ""
	case d == nil:
	case d.opening != nil:
		out.State = terms.StateOpening
	case d.err != nil && e.Empty && len(e.Tried) > 0 && errors.Is(d.err, content.ErrUnavailable): // it may be this node's by now
		out.State, out.Detail = terms.StateOpening, content.Line(d.err)
	case d.err != nil:
		out.State, out.Detail = terms.StateFailed, content.Line(d.err)
	default:
		v.viewServed(&out, e, d)
	}
	return out
}

// viewServed says how a volume stands that is open.
func (v *Volumes) viewServed(out *terms.View, e index.Entry, d *attached) {
	stats := d.vol.Stats()
	_, _, st := d.record()
	out.Confirmed = st.Stage == right.Serving
	out.DirtyBytes, out.DiskBytes, out.Through = stats.Dirty, stats.Disk, d.vol.End().Seq
	out.Transport, out.Device = v.doors.Address(e.Name, d.disk)
	out.ReadOnly = d.vol.Geometry().ReadOnly
	if d.folds != nil {
		var why error
		if out.Lag, why = d.folds.Lag(); why != nil {
			out.Detail = "what was written since does not get into the bucket, and that is tried again: " + content.Line(why)
		}
	}
	if s, _ := d.guard.Status(); s.Short || s.Few && !s.Degraded {
		out.Short, out.Detail = true, fmt.Sprintf("%d members of the farm hold what is written, too few for %s: flushes wait until more have all of it, and fail where none gets on", len(s.Holders), e.Policy)
	}
	if d.image != nil {
		w := d.image.Waiting()
		out.Bytes, out.Slow, out.Blocked, out.Spent = d.image.Bytes(), d.image.Slow, w.Blocked.Seconds(), d.image.Spent()
		if w.Reads > 0 {
			out.Detail = fmt.Sprintf("%d reads wait, the first for %s of %s (--io-timeout): %v", w.Reads, time.Since(w.Since).Round(time.Second), w.Timeout, w.Why)
		}
	}
	switch {
	case stats.Failed != nil || stats.Full:
		out.State, out.Detail = terms.OfDisk(stats.Failed)
	case st.Stage == right.Lost:
		out.State, out.Detail = terms.StateFailed, content.Line(d.fenced())
	case e.Reader:
		out.Read(e.Volume)
	case !e.Committed:
		out.State, out.Detail = terms.StateUncommitted, cmp.Or(out.Detail, "the origin does not answer; the volume works, and its name is registered when the origin is back")
	default:
		d.mu.Lock()
		if out.State = terms.StateAttached; d.behind != "" {
			out.Detail = strings.TrimPrefix(out.Detail+"; "+d.behind, "; ")
		}
		d.mu.Unlock()
	}
}
