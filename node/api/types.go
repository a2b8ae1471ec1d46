package api

import (
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
)

// What a node says, and takes, goes out and comes in as it is.
type (
	Self          = node.Self
	Disks         = node.Disks
	Bytes         = fetch.Bytes
	Peer          = node.Peer
	Cache         = node.Cache
	Origin        = node.Origin
	Status        = node.Status
	Token         = node.Token
	TokenRequest  = node.TokenRequest
	Image         = images.Image
	Removed       = images.Removed
	ImportRequest = images.ImportRequest
	Resolved      = records.Resolved
	VolumeSpec    = volumes.Spec
	Volume        = volumes.View
	Limits        = volumes.Limits
	Snapshot      = volumes.SnapshotView
	PromoteSpec   = volumes.PromoteSpec
	Operation     = operations.View
	Member        = membership.Member
	Revoked       = membership.Revocation
)

// MoveRequest is the body of POST /api/volumes/{name}/move.
type MoveRequest struct {
	Node string `json:"node" maxLength:"255" doc:"the member that is to have it, by its name or ID"`
}

// SnapshotRequest is the body of POST /api/volumes/{name}/snapshots.
type SnapshotRequest struct {
	Label string `json:"label,omitempty" maxLength:"64" doc:"the caller's own"`
}

// Taken answers POST /api/volumes/{name}/snapshots.
type Taken struct {
	Snapshot
	Operation string `json:"operation,omitempty" doc:"that ends when the snapshot is durable, where that was asked for"`
}

// RollbackRequest is the body of POST /api/volumes/{name}/rollback.
type RollbackRequest struct {
	Snapshot string `json:"snapshot_id" maxLength:"255" doc:"NAME@N, of this volume"`
}

// ResizeRequest is the body of POST /api/volumes/{name}/resize.
type ResizeRequest struct {
	Size int64 `json:"size" minimum:"1" doc:"bytes; no less than it has"`
}

// ExportRequest is the body of POST …/export.
type ExportRequest struct {
	File  string `json:"file" doc:"absolute path on the node's host"`
	Force bool   `json:"force,omitempty" doc:"replace a file that is there"`
}

// Peers answers GET /api/peers.
type Peers struct {
	Self  Self   `json:"self"`
	Peers []Peer `json:"peers"`
}

// EvictRequest is the body of POST /api/cache/evict.
type EvictRequest struct {
	Bytes int64 `json:"bytes" minimum:"1" doc:"how much to remove; less if the rest is pinned"`
}

// Evicted answers POST /api/cache/evict.
type Evicted struct {
	Freed int64 `json:"freed_bytes"`
	Cache Cache `json:"cache" doc:"as it stands then"`
}

// Rotated answers POST /api/mesh/rotate.
type Rotated struct {
	Generation uint64 `json:"generation"`
}

// MeshKey is the mesh key, the most secret thing that there is; over the socket alone.
type MeshKey struct {
	Key string `json:"key" maxLength:"200" doc:"as in the file mesh.key"`
}

// Extent is a range of a disk.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}
