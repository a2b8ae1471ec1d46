package api

import (
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
)

// What a node says, and takes, goes out and comes in as it is.
type (
	Self          = node.Self
	Peer          = node.Peer
	Bytes         = fetch.Bytes
	Cache         = node.Cache
	Origin        = node.Origin
	Image         = node.Image
	Removed       = node.Removed
	ImportRequest = node.ImportRequest
	Resolved      = records.Resolved
	VolumeSpec    = volumes.Spec
	Volume        = volumes.View
	Operation     = node.OperationView
	Member        = membership.Member
	Revoked       = membership.Revocation
)

// ExportRequest is the body of POST /api/images/{name}/export.
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

// Status answers GET /api/status.
type Status struct {
	Ready         bool               `json:"ready"`
	Waiting       []string           `json:"waiting,omitempty" doc:"what the node waits for before it is ready"`
	Self          Self               `json:"self"`
	Origin        Origin             `json:"origin"`
	Farm          []Peer             `json:"farm" doc:"the live neighbours"`
	Neighbourhood node.Neighbourhood `json:"neighbourhood"`
	Bytes         Bytes              `json:"bytes"`
	Cache         Cache              `json:"cache"`
	Volumes       int                `json:"volumes"`
	Failing       []string           `json:"failing,omitempty" doc:"volumes that have failed, or whose writes fail as the disk is full"`
	Disks         Disks              `json:"disks"`
	Started       time.Time          `json:"started"`
	Version       string             `json:"version"`
}

// Disks says how the node serves block devices.
type Disks struct {
	Served bool   `json:"served" doc:"volumes are block devices, where nothing else is asked for; else they are served over NBD"`
	Detail string `json:"detail,omitempty" doc:"why they are not, or what may befall them"`
}

// TokenRequest is the body of POST /api/tokens.
type TokenRequest struct {
	Role     string  `json:"role" enum:"node,seed,publisher,admin"`
	Farm     string  `json:"farm,omitempty" doc:"the farm that the member will belong to"`
	Lifetime float64 `json:"lifetime_seconds,omitempty" minimum:"0" maximum:"3.2e9" doc:"how long the token is good; a day when not given"`
}

// Token is a join token, or what is on record of one.
type Token struct {
	ID      string    `json:"id"`
	Token   string    `json:"token,omitempty" doc:"shown once, when it is made"`
	Limits  string    `json:"limits,omitempty" doc:"what those that join with it will not have; said when it is made"`
	Role    string    `json:"role"`
	Farm    string    `json:"farm,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	State   string    `json:"state" enum:"open,used,revoked,expired"`
	UsedBy  string    `json:"used_by,omitempty" doc:"the ID of the member that it brought in"`
}

// Rotated answers POST /api/mesh/rotate.
type Rotated struct {
	Generation uint64 `json:"generation"`
}

// MeshKey is the mesh key, the most secret thing that there is; over the socket alone.
type MeshKey struct {
	Key string `json:"key" maxLength:"200" doc:"as in the file mesh.key"`
}
