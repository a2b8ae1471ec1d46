package volumes

import (
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Limits bound what clients get of a volume, all of them together; 0 is no limit.
type Limits struct {
	IOPS           int64 `json:"iops" minimum:"0" doc:"requests a second; 0: no limit"`
	BytesPerSecond int64 `json:"bytes_per_second" minimum:"0" doc:"0: no limit"`
}

// SnapshotSpec is what a snapshot is asked for with.
type SnapshotSpec struct {
	// Label is the caller's own.
	Label string
	// Wait is "durable" for a call that returns when the snapshot is, else "".
	Wait string
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

// Extent is a range of a disk.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// RemoveSpec is how a volume is removed.
type RemoveSpec struct {
	Force bool // although it is in use, or its node is away
	Purge bool // its snapshots too
}

// PromoteSpec is what a volume or a snapshot becomes.
type PromoteSpec struct {
	Image   string        `json:"image" maxLength:"255" doc:"the image's name"`
	Scope   content.Scope `json:"scope,omitzero" doc:"who may read it: public, mesh, which it is when not given, or farm/NAME"`
	Replace bool          `json:"replace,omitempty" doc:"publish a new version of an image that exists"`
}

// Progress is told how many bytes of long work are done, and of how many; 0 is unknown.
type Progress func(done, total int64)
