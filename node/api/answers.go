package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

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

// Page is the input of routes that list.
type Page struct {
	Limit int    `query:"limit" minimum:"1" doc:"at most so many; all when not given"`
	After string `query:"after" maxLength:"255" doc:"what comes behind this one, which need not be there any more"`
}

// Listed is one page of a list, Tagged as well.
type Listed[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"of all but the ages"`
	Link   string `header:"Link" doc:"the next page, as rel=next; absent on the last"`
	Body   []T
}

// part cuts a page out of a list: pages go by key, in an order of the keys. A list that
// is wanted whole keeps its own.
func part[T any](in Page, list []T, key func(T) string, order func(a, b string) int) (page []T, link string) {
	page = append([]T{}, list...) // an empty list is [], never null
	if in == (Page{}) {
		return page, ""
	}
	slices.SortFunc(page, func(a, b T) int { return order(key(a), key(b)) })
	if in.After != "" {
		page = slices.DeleteFunc(page, func(v T) bool { return order(key(v), in.After) <= 0 })
	}
	if in.Limit > 0 && len(page) > in.Limit {
		page = page[:in.Limit]
		link = nextPage(in.Limit, key(page[in.Limit-1]))
	}
	return page, link
}

func nextPage(limit int, last string) string {
	next := url.Values{"limit": {strconv.Itoa(limit)}, "after": {last}}
	return "<?" + next.Encode() + `>; rel="next"`
}

// also keeps what else a list was asked for with in the link to its next page.
func also(link, name, value string) string {
	if link == "" || value == "" {
		return link
	}
	return strings.Replace(link, "<?", "<?"+url.Values{name: {value}}.Encode()+"&", 1)
}

func listed[T any](in IfNoneMatch, page []T, link string, err error) (*Listed[T], error) {
	timeless := make([]T, len(page))
	for i, v := range page {
		timeless[i] = ageless(v)
	}
	etag, status, failed := in.tag(timeless)
	return &Listed[T]{status, etag, link, page}, cmp.Or(err, failed)
}

func newestFirst(a, b string) int { return cmp.Compare(b, a) }

// lists registers a route that lists by name or ID.
func lists[T any](a huma.API, path, summary string, key func(T) string, list func(context.Context) ([]T, error)) {
	route(a, "GET "+path, summary, func(ctx context.Context, in *struct {
		Page
		IfNoneMatch
	}) (*Listed[T], error) {
		all, err := list(ctx)
		order := cmp.Compare[string]
		if path == operationsPath {
			order = newestFirst
		}
		page, link := part(in.Page, all, key, order)
		return listed(in.IfNoneMatch, page, link, err)
	})
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
