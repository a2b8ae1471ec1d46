package terms

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// State is how a volume stands on this node.
type State string

// The states.
const (
	StateOpening     State = "opening"
	StateAttached    State = "attached"
	StateUncommitted State = "uncommitted"
	// StateDetached is this node's still, and StateReleased is anybody's: what is here the bucket has too.
	StateDetached State = "detached"
	StateReleased State = "released"
	// StateFull is served, and its writes fail: the disk of the data folder is full.
	StateFull   State = "full"
	StateFailed State = "failed"
	// StateReading is read here as the bucket had it at one moment; whoever has it writes on.
	StateReading State = "reading"
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
	State      State       `json:"state" doc:"opening, attached, detached, released, uncommitted, full, failed, or reading: as of folded_at, beside its writer"`
	Detail     string      `json:"detail,omitempty" doc:"why the volume is in that state"`
	Node       string      `json:"node,omitempty" doc:"the peer that holds it"`
	NodeName   string      `json:"node_name,omitempty" doc:"what that peer is called, where it is known"`
	Farm       string      `json:"farm" doc:"the farm that it belongs to"`
	Root       content.CID `json:"root"`
	DirtyBytes int64       `json:"dirty_bytes" doc:"what of the disk lies in the journal alone"`
	DiskBytes  int64       `json:"disk_bytes" doc:"what the journal takes on this node's disk"`
	Lag        int64       `json:"lag_bytes" doc:"what was written and is not in the bucket"`
	FoldedAt   time.Time   `json:"folded_at,omitzero" doc:"when the bucket last got all that was written; absent when it never has"`
	Through    uint64      `json:"through,omitempty" doc:"of one that is served: the last entry of the journal that it has"`
	Loss       string      `json:"if_lost,omitempty" doc:"what would be lost with the node that has it, host and disk, in words"`
	Alone      int64       `json:"alone_bytes,omitempty" doc:"of a volume of this node: about what lies on its disk alone"`
	FsUsed     int64       `json:"fs_used_bytes,omitempty" doc:"what its file system has in use, where that can be told"`
	Degrade    string      `json:"degrade,omitempty" doc:"local: flushes may go on without the holders"`
	Degraded   time.Time   `json:"degraded_since,omitzero" doc:"since when flushes are acknowledged by this node alone"`
	Holders    []string    `json:"holders,omitempty" doc:"members that keep what is not in the bucket"`
	// HolderNames are what these are called, and the IDs of those of whom that is not known.
	HolderNames []string    `json:"holder_names,omitempty" doc:"what these are called, where it is known"`
	Short       bool        `json:"short,omitempty" doc:"too few members hold what is written: flushes wait for more, and fail"`
	Generation  uint64      `json:"generation,omitempty"`
	Confirmed   bool        `json:"confirmed" doc:"false until the record was read since this node started"`
	Limits      Limits      `json:"limits,omitzero"`
	Bytes       fetch.Bytes `json:"bytes"`
	Blocked     float64     `json:"blocked_seconds,omitempty" doc:"how long reads have waited for bytes that were not on this node, since it was opened: while several wait it counts once"`
	// Spent is what single reads waited for what came from each source.
	Spent map[string]float64 `json:"blocked_by_source,omitempty" doc:"seconds that single reads have waited for what came from there; those that waited side by side count each"`
	// Slow returns the slowest reads of the last minutes; nil where none is served.
	Slow func() []why.Read `json:"-"`
}

// SnapshotView describes a snapshot.
type SnapshotView struct {
	ID      string        `json:"snapshot_id" doc:"NAME@N"`
	Volume  string        `json:"volume"`
	Number  uint64        `json:"number" doc:"N; 0 of an orphan"`
	Label   string        `json:"label,omitempty"`
	Size    int64         `json:"size" doc:"bytes of the disk"`
	Created time.Time     `json:"created"`
	Durable bool          `json:"durable" doc:"all of it is in the bucket"`
	Orphan  bool          `json:"orphan" doc:"what a node had acknowledged and not folded when another took its volume over"`
	Parent  content.Ref   `json:"parent,omitzero" doc:"what it comes behind"`
	Root    content.CID   `json:"root"`
	Node    string        `json:"node,omitempty" doc:"of one that is not durable: the peer that has the rest"`
	FsUsed  int64         `json:"fs_used_bytes,omitempty" doc:"what its file system has in use, where that can be told"`
	Bytes   SnapshotBytes `json:"bytes"`
}

// SnapshotBytes says where what a snapshot holds lies.
type SnapshotBytes struct {
	Bucket int64 `json:"bucket" doc:"in segments there, beside the root"`
}

// OfRecord is what a record says of a volume.
func OfRecord(c *content.Codec, name, farm string, body catalog.Volume) View {
	out := View{
		Name: name, Size: body.Size, From: body.From, Durability: body.Policy, ReadOnly: body.ReadOnly, Epoch: body.Epoch, State: State(body.State), Farm: farm,
		Root: rootOf(c, body.Head), FoldedAt: body.FoldedAt, FsUsed: body.FsUsed, Degrade: body.Degrade, Degraded: body.DegradedSince, Generation: body.Generation,
		Limits: Limits{body.IOPS, body.Rate},
	}
	if body.State == catalog.Attached {
		out.Node = idOf(body.Holder)
	}
	for _, holder := range body.Holders {
		out.Holders = append(out.Holders, idOf(holder))
	}
	return out
}

func idOf(key trust.PublicKey) string { return identity.PeerID(key).String() }

// rootOf is the name of a root, zero for that of a blank disk.
func rootOf(c *content.Codec, head *pack.Head) content.CID {
	if head == nil {
		return content.CID{}
	}
	root, err := head.Root.Encode(c)
	if err != nil { // it was decoded
		return content.CID{}
	}
	return root.CID()
}

// OfSnapshot is what a record says of a snapshot.
func OfSnapshot(c *content.Codec, s catalog.Snapshot) SnapshotView {
	out := SnapshotView{
		ID: s.Ref().RecordName(), Volume: s.Volume, Number: s.Number, Label: s.Label, Size: s.Size, Created: s.Created, Durable: s.Durable, Orphan: s.Orphan,
		Parent: s.Parent, Root: rootOf(c, s.Head), FsUsed: s.FsUsed,
	}
	for _, segment := range s.Segments {
		out.Bytes.Bucket += segment.Bytes
	}
	if !s.Durable {
		out.Node = idOf(s.Holder)
	}
	return out
}

// CompareSnapshots orders the names of snapshots: by volume, and of one by number.
func CompareSnapshots(a, b string) int {
	va, na, _ := strings.Cut(a, "@")
	vb, nb, _ := strings.Cut(b, "@")
	return cmp.Or(cmp.Compare(va, vb), cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb))
}

// Read has a view say of which moment a reader is.
func (v *View) Read(body catalog.Volume) {
	v.State, v.Through, v.Lag = StateReading, body.Through().Seq, 0
	if v.Detail == "" {
		v.Detail = fmt.Sprintf("it has entry %d, of %s, and keeps that; `grange volume attach %s --readonly` takes what is newer once nobody has it open here", v.Through, MomentOr(body.FoldedAt, "when it was made"), v.Name)
	}
}

// OfDisk is how a volume stands whose disk has failed, or is full when nothing did.
func OfDisk(failed error) (State, string) {
	if failed == nil {
		return StateFull, "the disk of the data folder is full, and the guest's writes fail with ENOSPC until there is room"
	}
	return StateFailed, fmt.Sprintf("%v; what was flushed before is safe: mend the disk, then detach and attach the volume", failed)
}

// states counts the volumes of each state, and what of them is on this node's disk alone or
// its holders', when the metrics are asked for.
type states struct {
	list      func() []View
	desc, lag *prometheus.Desc
}

// Metrics counts what list returns, whenever it is collected.
func Metrics(list func() []View) prometheus.Collector {
	return states{
		list, prometheus.NewDesc("grange_volumes", "Volumes of this node by state.", []string{"state"}, nil),
		prometheus.NewDesc("grange_volumes_lag_bytes", "Bytes of this node's volumes that are not in the bucket.", nil, nil),
	}
}

func (s states) Describe(out chan<- *prometheus.Desc) { out <- s.desc; out <- s.lag }

func (s states) Collect(out chan<- prometheus.Metric) {
	count, lag := map[State]int{}, int64(0)
	for _, view := range s.list() {
		count[view.State]++
		lag += view.Lag
	}
	out <- prometheus.MustNewConstMetric(s.lag, prometheus.GaugeValue, float64(lag))
	for _, state := range []State{StateOpening, StateAttached, StateUncommitted, StateDetached, StateReleased, StateFull, StateFailed, StateReading} {
		out <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, float64(count[state]), string(state))
	}
}

// During says of an error what it kept from being done.
func During(err *error, what string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(what+": %w", append(args, *err)...)
	}
}
