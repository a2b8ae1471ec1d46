//go:build linux

package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// ublksFile says how many disks the kernel allows.
const ublksFile = "/sys/module/ublk_drv/parameters/ublks_max"

// NodeGetCapabilities says what of the node's service there is.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	out := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_VOLUME_CONDITION, csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return out, nil
}

// NodeGetInfo says how the node is called, where it stands, and how many disks its kernel allows.
func (d *Driver) NodeGetInfo(ctx context.Context, _ *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	p, err := d.self(ctx)
	if err != nil {
		return nil, err
	}
	out := &csi.NodeGetInfoResponse{NodeId: p.Self.ID, AccessibleTopology: &csi.Topology{Segments: map[string]string{FarmKey: p.Self.Farm}}}
	if b, err := os.ReadFile(ublksFile); err == nil { // else the driver is not there, and a volume's stage says so
		out.MaxVolumesPerNode, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	}
	return out, nil
}

// attach has this node serve a volume as a disk, and returns it with the disk's path.
func (d *Driver) attach(ctx context.Context, r *csi.NodeStageVolumeRequest) (v api.Volume, err error) {
	spec := api.VolumeSpec{Transport: terms.UBLK, ReadOnly: reading(r.VolumeCapability)}
	if spec.Generation, err = strconv.ParseUint(r.PublishContext[generationKey], 10, 64); err != nil && r.PublishContext[generationKey] != "" {
		return v, invalid("publish_context: %v", err)
	}
	if spec.ReadOnly {
		spec.Generation = 0 // who only reads changes nothing
	}
	put := func() error { return d.ask(ctx, "PUT", volumePath(r.VolumeId), spec, &v) }
	if err = put(); is(err, 0, string(content.Attached)) { // a driver that was killed had borrowed it
		if v, err = d.find(ctx, r.VolumeId); err == nil && borrowed(v) {
			if err = d.giveBack(ctx, v); err == nil {
				err = put()
			}
		}
	}
	if p, ok := errors.AsType[*client.Problem](err); ok && p.Code == string(content.Held) && r.PublishContext[takeoverKey] == "true" && p.Policy != catalog.PolicyLocal {
		spec.Takeover = true
		err = put()
	}
	switch {
	case err != nil:
		return v, err
	case v.State == terms.StateOpening:
		return v, status.Errorf(codes.Unavailable, "volume %s is being opened", v.Name)
	case !strings.HasPrefix(v.Device, "/dev/"):
		return v, status.Errorf(codes.FailedPrecondition, "volume %s is %s, and no disk: %s", v.Name, v.State, v.Detail)
	}
	return v, nil
}

// NodeStageVolume attaches a volume to this node and mounts it, unless it is wanted as a disk. An empty disk is formatted first.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if why := capable(r.VolumeCapability); why != "" {
		return nil, invalid("%s", why)
	}
	if content.CheckName(r.VolumeId) != nil {
		return nil, status.Errorf(codes.NotFound, "there is no volume %q", r.VolumeId)
	}
	v, err := d.attach(ctx, r)
	if err != nil {
		return nil, err
	}
	if m := r.VolumeCapability.GetMount(); m != nil {
		want := disk{path: v.Device, kind: m.FsType, readonly: reading(r.VolumeCapability) || v.ReadOnly, options: m.MountFlags, mark: fmt.Sprintf("%s %d\n", v.Name, v.Epoch)}
		err = want.stage(ctx, r.StagingTargetPath)
	}
	return &csi.NodeStageVolumeResponse{}, err
}

// NodeUnstageVolume ends a stage and releases the volume: it succeeds when the bucket has all of it, so that any node of the farm may
// have it.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	out := &csi.NodeUnstageVolumeResponse{}
	if err := unmount(r.StagingTargetPath); err != nil || content.CheckName(r.VolumeId) != nil {
		return out, err
	}
	var v api.Volume
	switch err := d.ask(ctx, "GET", volumePath(r.VolumeId), nil, &v); {
	case is(err, missing, ""), err == nil && (v.State == terms.StateReleased || borrowed(v)):
		return out, nil
	case err != nil:
		return nil, err
	}
	return out, d.giveBack(ctx, v)
}

// NodePublishVolume shows a volume that is staged at another path: the tree, or the disk.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	v, err := d.find(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(v.Device, "/dev/") || r.StagingTargetPath == "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not staged on this node: %s", v.Name, v.State)
	}
	from, block := r.StagingTargetPath, r.VolumeCapability.GetBlock() != nil
	if block {
		from = v.Device
	}
	targets, err := mountsOf(v.Device)
	if err != nil {
		return nil, err
	}
	staged := at(targets, r.StagingTargetPath)
	if staged >= 0 {
		targets = slices.Delete(targets, staged, staged+1)
	}
	there := at(targets, r.TargetPath)
	single := r.VolumeCapability.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	switch {
	case there >= 0 && r.Readonly && !targets[there].readonly():
		return nil, status.Errorf(codes.AlreadyExists, "volume %s is at %s, for writing", v.Name, r.TargetPath)
	case there >= 0:
		return &csi.NodePublishVolumeResponse{}, nil
	case single && len(targets) > 0:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is at %s, and may be at one place alone", v.Name, targets[0].Mountpoint)
	case !block && staged < 0:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not mounted at %s", v.Name, r.StagingTargetPath)
	}
	return &csi.NodePublishVolumeResponse{}, bind(ctx, from, r.TargetPath, block, r.Readonly)
}

// NodeUnpublishVolume ends that.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unmount(r.TargetPath); err != nil {
		return nil, err
	}
	if err := os.Remove(r.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// published returns a volume that is at a path of this node.
func (d *Driver) published(ctx context.Context, id, path string) (v api.Volume, m mount, err error) {
	if v, err = d.find(ctx, id); err != nil {
		return v, m, err
	}
	none := status.Errorf(codes.NotFound, "volume %s is not at %s", id, path)
	if !strings.HasPrefix(v.Device, "/dev/") {
		return v, m, none
	}
	all, err := mountsOf(v.Device)
	if err != nil {
		return v, m, err
	}
	if i := at(all, path); i >= 0 {
		return v, all[i], nil
	}
	return v, m, none
}

// NodeGetVolumeStats says how full a volume is, and whether something is wrong with it.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	v, m, err := d.published(ctx, r.VolumeId, r.VolumePath)
	if err != nil {
		return nil, err
	}
	ill := v.State == terms.StateFailed || v.State == terms.StateFull || v.Short
	out := &csi.NodeGetVolumeStatsResponse{VolumeCondition: &csi.VolumeCondition{Abnormal: ill, Message: strings.TrimSpace(string(v.State) + " " + v.Detail)}}
	if m.disk {
		out.Usage = []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: v.Size}}
		return out, nil
	}
	var s unix.Statfs_t
	if err := unix.Statfs(m.Mountpoint, &s); err != nil {
		return nil, fmt.Errorf("look at %s: %w", m.Mountpoint, err)
	}
	block := int64(s.Bsize)
	out.Usage = []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(s.Blocks) * block, Used: int64(s.Blocks-s.Bfree) * block, Available: int64(s.Bavail) * block},
		{Unit: csi.VolumeUsage_INODES, Total: int64(s.Files), Used: int64(s.Files - s.Ffree), Available: int64(s.Ffree)},
	}
	return out, nil
}

// NodeExpandVolume makes a volume that is in use here larger, if that was not done where it was asked for, and then what
// is on it. A kernel that can't let a disk grow in use says so: it has grown when it is staged next.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	v, m, err := d.published(ctx, r.VolumeId, r.VolumePath)
	if err != nil {
		return nil, err
	}
	size := v.Size
	if r.CapacityRange != nil {
		if size, err = sized(r.CapacityRange, v.Size); err != nil {
			return nil, err
		}
	}
	if size > v.Size {
		if err := d.resize(ctx, v.Name, size); err != nil {
			return nil, err
		}
	}
	has, err := sizeOf(v.Device)
	switch {
	case err != nil:
		return nil, err
	case has < size:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s has %d bytes, and %s shows them when it is staged next: disks that are in use grow from Linux 6.16 on", v.Name, size, v.Device)
	case !m.disk && !m.readonly():
		err = grow(ctx, v.Device, m.FSType, m.Mountpoint)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: has}, err
}
