package tree

import (
	"bytes"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// The types of entries, as in the mode of stat.
const (
	typeMask                                  = 0o170000
	Pipe, CharDevice, Folder, BlockDevice     = 0o010000, 0o020000, 0o040000, 0o060000
	Regular, Link, Socket                     = 0o100000, 0o120000, 0o140000
	modeMask                                  = 0o177777
	nameMax, linkMax, xattrsMax, xattrNameMax = 255, 4095, 1024, 255 // what Linux takes
	xattrBytesMax                             = 64 << 10
	// RangesMax bounds the parts of a file that has holes; who writes more leaves some holes out.
	RangesMax = 1 << 16
	// EntriesMax bounds what one folder has, and listingMax its listing, which is read whole.
	EntriesMax = 1 << 20
	listingMax = 256 << 20
)

// Entry is one thing in a folder. Encoded as a CBOR array of the fields in their order.
type Entry struct {
	_ struct{} `cbor:",toarray"`
	// Name is one part of a path; it need not be UTF-8.
	Name []byte
	// Mode is the type and the permissions, as in stat.
	Mode     uint32
	UID, GID uint32
	// Seconds since 1970, and Nanos, are when it was changed last.
	Seconds int64
	Nanos   uint32
	// Size is of a regular file, holes included.
	Size int64
	// Ranges are the parts of a regular file that are not holes, by rising offsets; nil is all of it.
	Ranges []Range
	// Target is where a symbolic link leads, and Same the path of an earlier entry that this is another name of.
	Target, Same []byte
	// Links is how many names it has in the tree, where it has more than one; those that say Same say none.
	Links uint32
	// Device is the number of one, as in stat.
	Device uint64
	Xattrs []Xattr // by rising names
	// Data are the bytes in the data stream: of a regular file, and of all that is in a folder.
	// Own is the length of a folder's listing, and Below of those of all folders in it.
	Data, Own, Below int64
}

// Range is a part of a file.
type Range struct {
	_           struct{} `cbor:",toarray"`
	Off, Length int64
}

// Xattr is an extended attribute, as the kernel names it.
type Xattr struct {
	_           struct{} `cbor:",toarray"`
	Name, Value []byte
}

// Is reports whether an entry is of a type.
func (e *Entry) Is(kind uint32) bool { return e.Mode&typeMask == kind }

// Changed is when it was changed last.
func (e *Entry) Changed() time.Time { return time.Unix(e.Seconds, int64(e.Nanos)) }

// check fails with ErrCorrupt unless an entry may stand in a listing, or be the top where that is set.
func (e *Entry) check(top bool) error {
	named := len(e.Name) > 0 && len(e.Name) <= nameMax && !bytes.ContainsAny(e.Name, "/\x00") && string(e.Name) != "." && string(e.Name) != ".."
	switch {
	case named == top || top && (len(e.Name) > 0 || !e.Is(Folder)):
		return fmt.Errorf("%w: an entry called %.300q", content.ErrCorrupt, e.Name)
	case e.Mode&^modeMask != 0 || e.Nanos >= 1e9 || e.Data < 0 || e.Data > content.SizeMax || e.Own < 0 || e.Own > listingMax || e.Below < 0 || e.Below > content.SizeMax || e.Size < 0 || len(e.Xattrs) > xattrsMax || len(e.Ranges) > RangesMax:
		return fmt.Errorf("%w: %.300q says more than may be", content.ErrCorrupt, e.Name)
	}
	for i, x := range e.Xattrs {
		if len(x.Name) == 0 || len(x.Name) > xattrNameMax || bytes.IndexByte(x.Name, 0) >= 0 || len(x.Value) > xattrBytesMax || i > 0 && bytes.Compare(e.Xattrs[i-1].Name, x.Name) >= 0 {
			return fmt.Errorf("%w: extended attribute %.300q of %.300q", content.ErrCorrupt, x.Name, e.Name)
		}
	}
	if !e.isSane() {
		return fmt.Errorf("%w: %.300q is no thing of its type", content.ErrCorrupt, e.Name)
	}
	return nil
}

// isSane reports whether an entry has what its type has, and nothing else.
func (e *Entry) isSane() bool {
	link, same, device := len(e.Target) > 0, len(e.Same) > 0, e.Device != 0
	regular := e.Size != 0 || e.Ranges != nil || e.Data != 0
	if same && (regular || link || device || e.Links > 0 || e.Own+e.Below != 0 || e.Is(Folder)) || len(e.Target) > linkMax || bytes.IndexByte(e.Target, 0) >= 0 {
		return false
	}
	switch e.Mode & typeMask {
	case Folder:
		return !link && !device && e.Links == 0 && e.Size == 0 && e.Ranges == nil
	case Regular:
		return !link && !device && e.Own+e.Below == 0 && (same || e.Data == e.held())
	case Link:
		return (link || same) && !regular && !device && e.Own+e.Below == 0
	case CharDevice, BlockDevice:
		return !link && !regular && e.Own+e.Below == 0
	case Pipe, Socket:
		return !link && !regular && !device && e.Own+e.Below == 0
	}
	return false
}

// Parts are the ranges of a regular file that are not holes.
func (e *Entry) Parts() []Range {
	if e.Ranges == nil && e.Size > 0 {
		return []Range{{Length: e.Size}}
	}
	return e.Ranges
}

// held is how many bytes of a regular file are not in holes; -1 where its ranges are none.
func (e *Entry) held() (n int64) {
	if e.Ranges == nil {
		return e.Size
	}
	end := int64(0)
	for _, r := range e.Ranges {
		if r.Off < end || r.Length <= 0 || r.Length > e.Size-r.Off {
			return -1
		}
		end, n = r.Off+r.Length, n+r.Length
	}
	return n
}

// encodeListing is the listing of a folder: a CBOR array of its entries, by rising names.
func encodeListing(c *content.Codec, entries []Entry) ([]byte, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	if len(entries) > EntriesMax {
		return nil, fmt.Errorf("%w: a folder with %d entries; at most %d may be in one", content.ErrInvalid, len(entries), EntriesMax)
	}
	return c.Marshal(entries)
}

// decodeTop reads the entry of the top; anything but a valid one is ErrCorrupt.
func decodeTop(c *content.Codec, b []byte) (e Entry, err error) {
	if err = c.Unmarshal(b, &e); err == nil {
		err = e.check(true)
	}
	if err != nil {
		return e, fmt.Errorf("top of a tree: %w", err)
	}
	return e, nil
}

// decodeListing reads a listing, which must be as its folder says; else it is ErrCorrupt.
func decodeListing(c *content.Codec, of *Entry, b []byte) (entries []Entry, err error) {
	if len(b) == 0 && of.Data == 0 && of.Below == 0 {
		return nil, nil
	}
	if err := c.Unmarshal(b, &entries); err != nil {
		return nil, fmt.Errorf("listing: %w", err)
	}
	var data, below int64
	for i := range entries {
		e := &entries[i]
		if err := e.check(false); err != nil {
			return nil, fmt.Errorf("listing: %w", err)
		}
		if i > 0 && bytes.Compare(entries[i-1].Name, e.Name) >= 0 {
			return nil, fmt.Errorf("listing: %w: %.300q comes behind %.300q", content.ErrCorrupt, e.Name, entries[i-1].Name)
		}
		data, below = data+e.Data, below+e.Own+e.Below
		if data > of.Data || below > of.Below {
			break
		}
	}
	if len(entries) == 0 || data != of.Data || below != of.Below {
		return nil, fmt.Errorf("listing: %w: its folder says other sums", content.ErrCorrupt)
	}
	return entries, nil
}
