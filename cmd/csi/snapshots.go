//go:build linux

package csi

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// behind is what tokens of lists begin with; the snapshot that the page comes behind follows.
const behind = "behind:"

// snapshot returns a snapshot of the mesh by its ID, NAME@N.
func (d *Driver) snapshot(ctx context.Context, id string) (s api.Snapshot, err error) {
	if content.KindSnapshot.CheckName(id) != nil {
		return s, status.Errorf(codes.NotFound, "there is no snapshot %q", id)
	}
	return s, d.ask(ctx, "GET", snapshotsPath+"/"+content.Segment(id), nil, &s)
}

func shown(s api.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Volume, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Created), ReadyToUse: s.Durable}
}

// snapshots returns those of a volume, or of all with "".
func (d *Driver) snapshots(ctx context.Context, volume string) (all []api.Snapshot, err error) {
	path := snapshotsPath
	if volume != "" {
		path += "?" + url.Values{"volume": {volume}}.Encode()
	}
	return all, d.ask(ctx, "GET", path, nil, &all)
}

// CreateSnapshot makes a snapshot, which is labelled by the name that it is asked for under: a repetition finds it by that. It
// is ready to be used once the bucket has all of it, which is hastened.
func (d *Driver) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	for key := range r.Parameters {
		if !strings.HasPrefix(key, sidecarKeys) {
			return nil, invalid("parameter %s: snapshots take none", key)
		}
	}
	label := nameOf(r.Name, labelMax)
	all, err := d.snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, func(s api.Snapshot) bool { return s.Label == label }); i >= 0 {
		if all[i].Volume != r.SourceVolumeId {
			return nil, status.Errorf(codes.AlreadyExists, "a snapshot of that name is there, %s, of another volume", all[i].ID)
		}
		return &csi.CreateSnapshotResponse{Snapshot: shown(all[i])}, nil
	}
	v, err := d.find(ctx, r.SourceVolumeId)
	if err != nil {
		return nil, err
	}
	var taken api.Taken
	take := func() error {
		return d.ask(ctx, "POST", volumePath(v.Name)+"/snapshots?wait="+terms.Durable, api.SnapshotRequest{Label: label}, &taken)
	}
	if !held(v) || borrowed(v) {
		err = d.borrow(ctx, v.Name, take)
	} else {
		err = take()
	}
	if err == nil {
		taken.Snapshot, err = d.snapshot(ctx, taken.ID)
	}
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: shown(taken.Snapshot)}, nil
}

// DeleteSnapshot deletes a snapshot; what was made from it stays.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	out := &csi.DeleteSnapshotResponse{}
	if content.KindSnapshot.CheckName(r.SnapshotId) != nil { // there is none
		return out, nil
	}
	return out, d.ask(ctx, "DELETE", snapshotsPath+"/"+content.Segment(r.SnapshotId), nil, nil)
}

// ListSnapshots lists one, those of a volume, or all that the mesh has.
func (d *Driver) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	out := &csi.ListSnapshotsResponse{}
	var all []api.Snapshot
	switch one, err := d.snapshot(ctx, r.SnapshotId); {
	case r.SnapshotId != "" && (is(err, missing, "") || status.Code(err) == codes.NotFound):
		return out, nil
	case r.SnapshotId != "" && err != nil:
		return nil, err
	case r.SnapshotId != "":
		all = []api.Snapshot{one}
	case r.SourceVolumeId != "" && content.CheckName(r.SourceVolumeId) != nil:
		return out, nil
	default:
		if all, err = d.snapshots(ctx, r.SourceVolumeId); err != nil {
			return nil, err
		}
	}
	all = slices.DeleteFunc(all, func(s api.Snapshot) bool { return r.SourceVolumeId != "" && s.Volume != r.SourceVolumeId })
	last, ok := strings.CutPrefix(r.StartingToken, behind)
	switch {
	case r.StartingToken != "" && !ok:
		return nil, status.Errorf(codes.Aborted, "starting_token %q is none of this driver's", r.StartingToken)
	case r.MaxEntries < 0:
		return nil, invalid("max_entries %d is less than none", r.MaxEntries)
	case ok:
		all = slices.DeleteFunc(all, func(s api.Snapshot) bool { return terms.CompareSnapshots(s.ID, last) <= 0 })
	}
	if most := int(r.MaxEntries); most > 0 && len(all) > most {
		all, out.NextToken = all[:most], behind+all[most-1].ID
	}
	for _, s := range all {
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: shown(s)})
	}
	return out, nil
}
