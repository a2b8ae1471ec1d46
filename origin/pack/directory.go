package pack

import (
	"github.com/grangemesh/grange/origin/content"
)

// Role says what a frame is.
type Role uint8

// The roles of frames.
const (
	RoleChunk    Role = 1
	RoleNode     Role = 2
	RolePage     Role = 3
	RoleRoot     Role = 4
	RoleManifest Role = 5
)

// Entry is one frame of a directory.
type Entry struct {
	CID    content.CID
	Offset uint32
	Length uint32
	Raw    uint32
	Codec  Codec
	Key    uint8
	Role   Role
}

// Directory lists the frames of a pack, by rising offset.
type Directory struct {
	Pack ID
	// Moved is the pack that took over the frames of this one, or "".
	Moved   ID
	Entries []Entry
}
