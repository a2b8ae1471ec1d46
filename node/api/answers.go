package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	instances "github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/mounts"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/profile"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// Answer is a JSON body.
type Answer[T any] struct{ Body T }

func answer[T any](v T, err error) (*Answer[T], error) { return &Answer[T]{v}, err }

// Made is the answer to a request that makes something.
type Made[T any] struct {
	Status   int
	Location string `header:"Location" doc:"where what was made is found"`
	Body     T
}

func made[T any](status int, dir, id string, v T) *Made[T] {
	return &Made[T]{status, dir + content.Segment(id), v}
}

// Tagged is an answer that a client which has it need not be sent again.
type Tagged[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"of all but the age, and what was read"`
	Body   T
}

// IfNoneMatch is the input of routes with an answer that is Tagged.
type IfNoneMatch struct {
	Tags string `header:"If-None-Match" doc:"ETags that the client has; 304 if one of them is the answer's"`
}

func tagged[T any](in IfNoneMatch, v T, err error) (*Tagged[T], error) {
	etag, status, failed := in.tag(ageless(v))
	return &Tagged[T]{status, etag, v}, cmp.Or(err, failed)
}

// tag returns the ETag of an answer, and 304 when the client has it.
func (in IfNoneMatch) tag(v any) (etag string, status int, err error) {
	var b []byte
	if r, ok := v.(Resolved); ok { // asked for more often than all else: no more than what may change
		b = append(strconv.AppendBool(strconv.AppendUint(r.CID[:], r.Version, 10), r.Confirmed), r.Warning...)
	} else if b, err = json.Marshal(v); err != nil {
		return "", 0, err
	}
	sum := content.Sum(b)
	etag = fmt.Sprintf(`"%x"`, sum[:12])
	for have := range strings.SplitSeq(in.Tags, ",") {
		if have = strings.TrimPrefix(strings.TrimSpace(have), "W/"); have == "*" || have == etag {
			return "W/" + etag, http.StatusNotModified, nil
		}
	}
	return "W/" + etag, http.StatusOK, nil
}

// ageless is what an answer is whenever it is asked for.
func ageless[T any](v T) T {
	switch v := any(&v).(type) {
	case *Image:
		v.Age, v.Bytes, v.Copies = 0, Bytes{}, 0
	case *Operation:
		v.ETA = 0
	}
	return v
}

// What a node says, and takes, goes out and comes in as it is.
type (
	Self          = node.Self
	Disks         = node.Disks
	Bytes         = fetch.Bytes
	Peer          = node.Peer
	Ping          = node.Ping
	Why           = node.Why
	Cache         = node.Cache
	Origin        = node.Origin
	Status        = node.Status
	Token         = node.Token
	TokenRequest  = node.TokenRequest
	Image         = images.Image
	BootList      = images.BootList
	Removed       = images.Removed
	ImportRequest = images.ImportRequest
	ProfileSpec   = profile.Spec
	Mount         = mounts.Mount
	Resolved      = records.Resolved
	VolumeSpec    = terms.Spec
	Volume        = terms.View
	Limits        = terms.Limits
	Instance      = instances.View
	Provision     = instances.Request
	Snapshot      = terms.SnapshotView
	PromoteSpec   = terms.PromoteSpec
	Operation     = operations.View
	Member        = membership.Member
	Revoked       = membership.Revocation
)

// ExportTreeRequest is the body of POST /api/trees/{name}/export.
type ExportTreeRequest struct {
	Dir   string `json:"dir" maxLength:"4096" doc:"a folder on the node's host: one that is empty, or is not there"`
	Force bool   `json:"force,omitempty" doc:"also one that is not empty, which has in the end what the tree has, and nothing else"`
}

// MountRequest is the body of POST /api/trees/{name}/mounts.
type MountRequest struct {
	Dir string `json:"dir" maxLength:"4096" doc:"an empty folder on the node's host"`
}

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
