package volumes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/content"
)

// State is how a volume stands on this node.
type State string

// The states.
const (
	StateOpening     State = "opening"
	StateAttached    State = "attached"
	StateUncommitted State = "uncommitted"
	StateDetached    State = "detached"
	// StateFull is served, and its writes fail: the disk of the data folder is full.
	StateFull   State = "full"
	StateFailed State = "failed"
)

// View describes a volume.
type View struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	From       content.Ref `json:"from,omitzero"`
	Transport  string      `json:"transport"`
	Device     string      `json:"device" doc:"what a client opens"`
	Durability string      `json:"durability"`
	ReadOnly   bool        `json:"readonly"`
	Epoch      uint64      `json:"epoch"`
	State      State       `json:"state" doc:"opening, attached, detached, uncommitted, full, or failed"`
	Detail     string      `json:"detail,omitempty" doc:"why the volume is in that state"`
	Node       string      `json:"node,omitempty" doc:"the peer that holds it"`
	Farm       string      `json:"farm" doc:"the farm that it belongs to"`
	Root       content.CID `json:"root"`
	DirtyBytes int64       `json:"dirty_bytes" doc:"what of the disk lies in the journal alone"`
	DiskBytes  int64       `json:"disk_bytes" doc:"what the journal takes on this node's disk"`
	Lag        int64       `json:"lag_bytes" doc:"what was written and is not in the bucket"`
	FoldedAt   time.Time   `json:"folded_at,omitzero" doc:"when the bucket last got all that was written; absent when it never has"`
	FsUsed     int64       `json:"fs_used_bytes,omitempty" doc:"what its file system has in use, where that can be told"`
	Degrade    string      `json:"degrade,omitempty" doc:"local: flushes may go on without the holders"`
	Degraded   time.Time   `json:"degraded_since,omitzero" doc:"since when flushes are acknowledged by this node alone"`
	Holders    []string    `json:"holders,omitempty" doc:"members that keep what is not in the bucket"`
	Generation uint64      `json:"generation,omitempty"`
	Confirmed  bool        `json:"confirmed" doc:"false until the record was read since this node started"`
	Limits     Limits      `json:"limits,omitzero"`
	Bytes      fetch.Bytes `json:"bytes"`
}

// List returns all volumes of this node, by name; folders that can't be read come last.
func (v *Volumes) List() []View {
	var out []View
	for _, e := range v.index.Sorted() {
		out = append(out, v.view(e))
	}
	for _, folder := range slices.Sorted(maps.Keys(v.index.Broken)) {
		out = append(out, v.viewBroken(folder))
	}
	return out
}

// Failing returns the names of the volumes that want a look: they can't be served, have
// stopped, or find no room for what is written.
func (v *Volumes) Failing() []string {
	var out []string
	for _, view := range v.List() {
		if view.State == StateFailed || view.State == StateFull {
			out = append(out, view.Name)
		}
	}
	return out
}

// Get returns one volume of this node.
func (v *Volumes) Get(name string) (View, error) {
	if e, ok := v.index.Get(name); ok {
		return v.view(e), nil
	}
	if v.index.Broken[name] != nil {
		return v.viewBroken(name), nil
	}
	return View{}, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
}

func (v *Volumes) viewBroken(folder string) View {
	return View{Name: folder, State: StateFailed, Detail: content.Line(v.index.Broken[folder]), Node: v.cfg.NodeID, Farm: v.cfg.Farm}
}

func (v *Volumes) view(e index.Entry) View {
	out := v.viewRecord(e.Name, v.cfg.Farm, e.Volume)
	out.State, out.Transport, out.Node = StateDetached, e.Transport, v.cfg.NodeID
	d := v.device(e.Name)
	switch {
	case d == nil:
	case d.opening != nil:
		out.State = StateOpening
	case d.err != nil:
		out.State, out.Detail = StateFailed, content.Line(d.err)
	default:
		v.viewServed(&out, e, d)
	}
	return out
}

// viewServed says how a volume stands that is open.
func (v *Volumes) viewServed(out *View, e index.Entry, d *attached) {
	stats := d.vol.Stats()
	_, _, st := d.record()
	out.Confirmed = st.Stage == right.Serving
	out.DirtyBytes, out.DiskBytes = stats.Dirty, stats.Disk
	out.Transport, out.Device = v.doors.address(e.Name, d)
	out.ReadOnly = d.vol.Geometry().ReadOnly
	if d.folds != nil {
		var why error
		if out.Lag, why = d.folds.lag(); why != nil {
			out.Detail = "what was written since does not get into the bucket, and that is tried again: " + content.Line(why)
		}
	}
	if d.image != nil {
		out.Bytes = d.image.Bytes()
		if w := d.image.Waiting(); w.Reads > 0 {
			out.Detail = fmt.Sprintf("%d reads wait, the first for %s of %s (--io-timeout): %v", w.Reads, time.Since(w.Since).Round(time.Second), w.Timeout, w.Why)
		}
	}
	switch {
	case stats.Failed != nil:
		out.State, out.Detail = StateFailed, fmt.Sprintf("%v; what was flushed before is safe: mend the disk, then detach and attach the volume", stats.Failed)
	case stats.Full:
		out.State, out.Detail = StateFull, "the disk of the data folder is full, and the guest's writes fail with ENOSPC until there is room"
	case st.Stage == right.Lost:
		out.State, out.Detail = StateFailed, content.Line(d.fenced())
	case !e.Committed:
		out.State = StateUncommitted
		out.Detail = cmp.Or(out.Detail, "the origin does not answer; the volume works, and its name is registered when the origin is back")
	default:
		out.State = StateAttached
	}
}

// states counts the volumes of each state, when the metrics are asked for.
type states struct {
	v    *Volumes
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s states) Describe(out chan<- *prometheus.Desc) { out <- s.desc }

// Collect implements prometheus.Collector.
func (s states) Collect(out chan<- prometheus.Metric) {
	count := map[State]int{}
	for _, view := range s.v.List() {
		count[view.State]++
	}
	for _, state := range []State{StateOpening, StateAttached, StateUncommitted, StateDetached, StateFull, StateFailed} {
		out <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, float64(count[state]), string(state))
	}
}
