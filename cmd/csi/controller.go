//go:build linux

package csi

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// sizeDefault is that of a blank volume of which no size is asked; sizeStep what sizes are rounded up to.
	sizeDefault, sizeStep = 1 << 30, 1 << 20

	// What a class of storage may say, beside what the sidecars keep for themselves.
	fromKey, durabilityKey, takeoverKey, sidecarKeys = "from", "durability", "takeover", "csi.storage.k8s.io/"
	// generationKey is what a publication is numbered by, for who stages by an older one to be refused.
	generationKey = "generation"
)

// ControllerGetCapabilities says what of the controller's service there is.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME, csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// reading reports whether a capability is one that only reads: beside a writer, on any nodes.
func reading(c *csi.VolumeCapability) bool {
	m := c.GetAccessMode().GetMode()
	return m == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY || m == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
}

// capable says why a volume can't be used so; "" when it can.
func capable(as ...*csi.VolumeCapability) string {
	modes := []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
	}
	for _, c := range as {
		switch m := c.GetMount(); {
		case c.GetAccessType() == nil:
			return "a capability says neither block nor mount"
		case !slices.Contains(modes, c.GetAccessMode().GetMode()):
			return fmt.Sprintf("access mode %s: a volume has one node that writes", c.GetAccessMode().GetMode())
		case m != nil && !slices.Contains([]string{"", ext4, xfs}, m.FsType):
			return fmt.Sprintf("file system %q: want ext4 or xfs", m.FsType)
		}
	}
	return ""
}

// sized is what a volume is to have: what is asked for, or what it begins with where that is more.
func sized(r *csi.CapacityRange, least int64) (int64, error) {
	want, most := r.GetRequiredBytes(), r.GetLimitBytes()
	if want < 0 || most < 0 || most > 0 && most < want {
		return 0, invalid("capacity_range: %d to %d bytes is none", want, most)
	}
	size := max(want, least)
	if size == 0 {
		size = sizeDefault
		if most > 0 {
			size = min(size, most/sizeStep*sizeStep)
		}
	}
	if size > least {
		size = (size + sizeStep - 1) / sizeStep * sizeStep
	}
	if size == 0 || most > 0 && size > most || size > content.SizeMax {
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: %d bytes are needed, in steps of %d; the limit is %d, and that of all volumes %d", max(want, least), sizeStep, most, int64(content.SizeMax))
	}
	return size, nil
}

// wanted is what a CreateVolume asks for; size is that of what the volume begins as.
func (d *Driver) wanted(ctx context.Context, r *csi.CreateVolumeRequest) (spec api.VolumeSpec, size int64, err error) {
	from := ""
	for key, value := range r.Parameters {
		switch {
		case key == fromKey && strings.HasPrefix(value, string(content.KindImage)+":"):
			from = value
		case key == durabilityKey:
			_, err = catalog.PolicyHolders(value)
			spec.Durability = value
		case key == takeoverKey && (value == "true" || value == "false"):
		case !strings.HasPrefix(key, sidecarKeys):
			err = fmt.Errorf("want from=image:NAME, durability=local|farm:K|origin, takeover=true|false")
		}
		if err != nil {
			return spec, 0, invalid("parameter %s=%q: %v", key, value, err)
		}
	}
	if r.Parameters[takeoverKey] == "true" && (spec.Durability == "" || spec.Durability == catalog.PolicyLocal) {
		return spec, 0, invalid("takeover=true: it would lose what durability local has on one node alone: want farm:K or origin")
	}
	switch s := r.VolumeContentSource; {
	case s.GetSnapshot() != nil:
		id := s.GetSnapshot().SnapshotId
		from = string(content.KindSnapshot) + ":" + id
		v, err := d.snapshot(ctx, id)
		if err != nil {
			return spec, 0, err
		}
		size = v.Size
	case s.GetVolume() != nil:
		from = string(content.KindVolume) + ":" + s.GetVolume().VolumeId
		v, err := d.find(ctx, s.GetVolume().VolumeId)
		if err != nil {
			return spec, 0, err
		}
		size = v.Size
	case s != nil:
		return spec, 0, invalid("volume_content_source is neither a snapshot nor a volume")
	case from != "":
		var v api.Image
		if err := d.ask(ctx, "GET", "/api/images/"+content.Segment(strings.TrimPrefix(from, string(content.KindImage)+":")), nil, &v); err != nil {
			return spec, 0, err
		}
		size = v.Size
	}
	if err := spec.From.UnmarshalText([]byte(from)); err != nil {
		return spec, 0, invalid("%v", err)
	}
	spec.Size, err = sized(r.CapacityRange, size)
	return spec, size, err
}

// placed reports whether the topology that is asked for has a farm.
func placed(r *csi.TopologyRequirement, farm string) bool {
	if len(r.GetRequisite()) == 0 {
		return true
	}
	return slices.ContainsFunc(r.Requisite, func(t *csi.Topology) bool { return t.Segments[FarmKey] == farm })
}

// CreateVolume makes a volume that nobody has: it is attached to this node while it is made. A repetition whose volume is
// there already compares what is asked for with that.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if why := capable(r.VolumeCapabilities...); why != "" {
		return nil, invalid("%s", why)
	}
	name := nameOf(r.Name, content.NameMax)
	self, err := d.self(ctx)
	if err != nil {
		return nil, err
	}
	if !placed(r.AccessibilityRequirements, self.Self.Farm) {
		return nil, status.Errorf(codes.ResourceExhausted, "volumes that are made here are of farm %s, and another is asked for", self.Self.Farm)
	}
	spec, least, err := d.wanted(ctx, r)
	if err != nil {
		return nil, err
	}
	v, err := d.find(ctx, name)
	switch {
	case status.Code(err) == codes.NotFound:
		spec.Transport = terms.NBD
		if err = d.ask(ctx, "PUT", volumePath(name), spec, &v); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		if err := agrees(v, spec, r.CapacityRange, least); err != nil {
			return nil, err
		}
	}
	if borrowed(v) || v.State == terms.StateDetached && v.Node == self.Self.ID {
		if err := d.giveBack(ctx, v); err != nil {
			return nil, err
		}
	}
	out := &csi.Volume{
		VolumeId: name, CapacityBytes: v.Size, ContentSource: r.VolumeContentSource,
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{FarmKey: self.Self.Farm}}},
	}
	if r.Parameters[takeoverKey] == "true" {
		out.VolumeContext = map[string]string{takeoverKey: "true"}
	}
	return &csi.CreateVolumeResponse{Volume: out}, nil
}

// agrees fails where a volume is another than is asked for.
func agrees(v api.Volume, spec api.VolumeSpec, r *csi.CapacityRange, least int64) error {
	want, most := max(r.GetRequiredBytes(), least), r.GetLimitBytes()
	switch {
	case v.Size < want || most > 0 && v.Size > most:
		return status.Errorf(codes.AlreadyExists, "volume %s is there, with %d bytes", v.Name, v.Size)
	case v.From != spec.From:
		return status.Errorf(codes.AlreadyExists, "volume %s is there, made from %q", v.Name, v.From)
	case spec.Durability != "" && spec.Durability != v.Durability:
		return status.Errorf(codes.AlreadyExists, "volume %s is there, with durability %s", v.Name, v.Durability)
	}
	return nil
}

// DeleteVolume deletes a volume that nobody uses; its snapshots stay. Who deletes one has to be able to attach it.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	out := &csi.DeleteVolumeResponse{}
	v, err := d.find(ctx, r.VolumeId)
	switch {
	case status.Code(err) == codes.NotFound:
		return out, nil
	case err != nil:
		return nil, err
	case v.Device != "" && !borrowed(v), v.State == terms.StateReading:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is in use on this node", v.Name)
	case v.State == terms.StateReleased: // its last holder may be another node: whoever removes it takes it first
		if err := d.serve(ctx, v.Name); err != nil {
			return nil, err
		}
	}
	return out, d.ask(ctx, "DELETE", volumePath(v.Name), nil, nil)
}

// ControllerPublishVolume says whether a node may have a volume: it attaches it when it stages it. One that another node has is
// refused, whoever waits: unless its class asks for a takeover, a takeover loses nothing that was flushed, and the mesh
// sees that node no more. Kubernetes publishes a volume that one node may write elsewhere only when it holds that node for gone.
func (d *Driver) ControllerPublishVolume(ctx context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if why := capable(r.VolumeCapability); why != "" {
		return nil, invalid("%s", why)
	}
	v, err := d.find(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	farm, err := d.farmOf(ctx, r.NodeId)
	if err != nil {
		return nil, err
	}
	if farm != v.Farm {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s belongs to farm %s, and node %s to farm %s", v.Name, v.Farm, r.NodeId, farm)
	}
	// Numbers rise over all publications of a volume, also those that were never staged.
	number := max(v.Generation+1, uint64(time.Now().UnixMilli()))
	out := &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{generationKey: strconv.FormatUint(number, 10)}}
	if reading(r.VolumeCapability) || !held(v) || v.Node == r.NodeId {
		return out, nil
	}
	self, err := d.self(ctx)
	if err != nil {
		return nil, err
	}
	if v.Node == self.Self.ID && (borrowed(v) || v.State == terms.StateDetached) { // a deed of the controller's was cut short
		return out, d.giveBack(ctx, v)
	}
	if why := keeps(self, v, r.VolumeContext[takeoverKey] == "true"); why != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is attached to node %s (%s), %s", v.Name, v.Node, v.NodeName, why)
	}
	d.cfg.Log.Warn("a volume is to be taken over from a node that is gone", "volume", v.Name, "from", v.Node, "to", r.NodeId)
	out.PublishContext[takeoverKey] = "true"
	return out, nil
}

// there reports whether the mesh sees a node.
func there(self api.Peers, id string) bool {
	return id == self.Self.ID || slices.ContainsFunc(self.Peers, func(p api.Peer) bool { return p.ID == id && (p.State == "alive" || p.State == "connected") })
}

// keeps says why a volume stays with the node that has it; "" where another may take it over.
func keeps(self api.Peers, v api.Volume, asked bool) string {
	switch {
	case there(self, v.Node):
		return "which is there: it gives it up when the pod that uses it there has ended"
	case !asked:
		return fmt.Sprintf("which is away: start it, or `grange volume attach %s --takeover` on another node goes on without it, and detaches it; takeover=true in the class of storage asks for that", v.Name)
	case v.Durability == catalog.PolicyLocal || v.Durability == "" || !v.Degraded.IsZero():
		return "which is away, and alone has what was written last: start it"
	}
	return ""
}

// ControllerUnpublishVolume succeeds when a node has a volume no more, or is away: what it has then stays its own until it is
// taken over, which ControllerPublishVolume decides.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	out := &csi.ControllerUnpublishVolumeResponse{}
	v, err := d.find(ctx, r.VolumeId)
	if status.Code(err) == codes.NotFound {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	if !held(v) || r.NodeId != "" && r.NodeId != v.Node {
		return out, nil
	}
	self, err := d.self(ctx)
	if err != nil {
		return nil, err
	}
	if v.Node == self.Self.ID && borrowed(v) {
		return out, d.giveBack(ctx, v)
	}
	if there(self, v.Node) {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is attached to node %s (%s) still, which is there: it is released when it is unstaged", v.Name, v.Node, v.NodeName)
	}
	return out, nil
}

// ValidateVolumeCapabilities says whether a volume may be used so.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.find(ctx, r.VolumeId); err != nil {
		return nil, err
	}
	if why := capable(r.VolumeCapabilities...); why != "" {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.VolumeContext, VolumeCapabilities: r.VolumeCapabilities, Parameters: r.Parameters,
	}}, nil
}

// ControllerExpandVolume makes a volume larger where nobody has it, or this node; another node that has it does so itself, when
// it is asked next.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	v, err := d.find(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	size, err := sized(r.CapacityRange, v.Size)
	if err != nil {
		return nil, err
	}
	if v.State == terms.StateReleased && v.Size < size {
		err = d.borrow(ctx, v.Name, func() error { return d.resize(ctx, v.Name, size) })
	} else if v.Device != "" && v.Size < size {
		err = d.resize(ctx, v.Name, size)
	}
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

func (d *Driver) resize(ctx context.Context, name string, size int64) error {
	return d.ask(ctx, "POST", volumePath(name)+"/resize", api.ResizeRequest{Size: size}, nil)
}
