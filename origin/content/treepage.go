package content

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// EntryType says what a TreeEntry is. Sockets, pipes and devices are not content.
type EntryType uint8

// The types of entries.
const (
	EntryDir     EntryType = 1
	EntryFile    EntryType = 2
	EntrySymlink EntryType = 3
	// EntryMore goes on with the chunks of the file before it.
	EntryMore EntryType = 4
)

// TreeEntry is one line of the listing of a tree.
//
// Encoded as a dag-cbor array of its fields, in their order; lengths and
// extended attributes that are empty are empty lists.
type TreeEntry struct {
	_ struct{} `cbor:",toarray"`
	// Path from the top of the tree, parts joined by '/'. Bytes, as file names are.
	Path []byte
	Type EntryType
	// Mode holds the permission, setuid, setgid and sticky bits: 07777.
	Mode uint16
	// Mtime in nanoseconds since 1970.
	Mtime    int64
	UID, GID uint32
	// Size of a file, in bytes.
	Size int64
	// Offset in the file of the first chunk below, in bytes; not 0 in EntryMore only.
	Offset int64
	// First is the index under the tree's map of the first chunk; the others follow.
	First uint64
	// Lengths of the chunks, in bytes.
	Lengths []uint32
	// Target of a symbolic link, never followed by us.
	Target []byte
	// Xattrs are extended attributes, by rising name.
	Xattrs []Xattr
}

// Xattr is an extended attribute.
type Xattr struct {
	_     struct{} `cbor:",toarray"`
	Name  []byte
	Value []byte
}

const (
	treePageMagic = "grange-treepage/1"

	// TreePageSizeMax bounds an encoded page, so that it is an ordinary chunk.
	TreePageSizeMax = ChunkSizeMax
	// treePageHead is what a page takes beyond its entries, at most.
	treePageHead = 64

	// EntryChunksMax bounds the chunks of one entry; a longer file goes on in
	// EntryMore.
	EntryChunksMax = 4096
	// pathMax, namePartMax and targetMax are the limits of Linux.
	pathMax     = 4096
	namePartMax = 255
	targetMax   = 4095
	// xattrsMax bounds the names and values of one entry's extended attributes:
	// what Linux lists at most.
	xattrsMax = 64 << 10
	modeMask  = 0o7777
)

type treePageWire struct {
	_       struct{} `cbor:",toarray"`
	Magic   string
	Entries []TreeEntry
}

// EncodeTreePage returns a page of a listing: a dag-cbor array of magic and
// entries.
func EncodeTreePage(c *Codec, entries []TreeEntry) ([]byte, error) {
	if err := checkPage(entries); err != nil {
		return nil, fmt.Errorf("encode tree page: %w: %w", ErrInvalid, err)
	}
	b, err := c.Marshal(treePageWire{Magic: treePageMagic, Entries: normal(entries)})
	if err != nil {
		return nil, fmt.Errorf("encode tree page: %w", err)
	}
	if len(b) > TreePageSizeMax {
		return nil, fmt.Errorf("encode tree page: %w: %d bytes, the limit is %d", ErrInvalid, len(b), TreePageSizeMax)
	}
	return b, nil
}

// normal returns entries with empty lists instead of nil ones, which have
// another encoding.
func normal(entries []TreeEntry) []TreeEntry {
	out := slices.Clone(entries)
	for i := range out {
		e := &out[i]
		if e.Lengths == nil {
			e.Lengths = []uint32{}
		}
		if e.Target == nil {
			e.Target = []byte{}
		}
		e.Xattrs = append(make([]Xattr, 0, len(e.Xattrs)), e.Xattrs...)
		for j := range e.Xattrs {
			if e.Xattrs[j].Value == nil {
				e.Xattrs[j].Value = []byte{}
			}
		}
	}
	return out
}

// DecodeTreePage reads a page; anything but the one encoding of a valid page is
// ErrCorrupt. What holds across pages is checked by a TreeChecker.
func DecodeTreePage(c *Codec, b []byte) ([]TreeEntry, error) {
	if len(b) > TreePageSizeMax {
		return nil, fmt.Errorf("tree page of %d bytes: %w: limit is %d", len(b), ErrCorrupt, TreePageSizeMax)
	}
	var w treePageWire
	if err := c.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("tree page: %w", err)
	}
	if w.Magic != treePageMagic {
		return nil, fmt.Errorf("tree page: %w: magic %.20q, want %q", ErrCorrupt, w.Magic, treePageMagic)
	}
	if again, err := EncodeTreePage(c, w.Entries); err != nil {
		return nil, fmt.Errorf("tree page: %w: %w", ErrCorrupt, err)
	} else if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("tree page: %w: not the canonical encoding", ErrCorrupt)
	}
	return w.Entries, nil
}

func checkPage(entries []TreeEntry) error {
	if len(entries) == 0 {
		return fmt.Errorf("no entries")
	}
	for i, e := range entries {
		if err := e.check(); err != nil {
			return fmt.Errorf("entry %.300q: %w", e.Path, err)
		}
		if i > 0 && entries[i-1].Compare(e) >= 0 {
			return fmt.Errorf("entry %.300q: out of order", e.Path)
		}
	}
	return nil
}

// check holds each rule that one entry can break by itself.
func (e TreeEntry) check() error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	xattrs := 0
	for i, x := range e.Xattrs {
		xattrs += len(x.Name) + len(x.Value)
		if len(x.Name) == 0 || bytes.IndexByte(x.Name, 0) >= 0 || i > 0 && bytes.Compare(e.Xattrs[i-1].Name, x.Name) >= 0 {
			return fmt.Errorf("extended attribute %.80q: bad name, or out of order", x.Name)
		}
	}
	total := int64(0)
	for _, n := range e.Lengths {
		if n == 0 || n > ChunkSizeMax {
			return fmt.Errorf("chunk of %d bytes", n)
		}
		total += int64(n)
	}
	isFile, isMore := e.Type == EntryFile, e.Type == EntryMore
	switch {
	case e.Type < EntryDir || e.Type > EntryMore || e.Mode&^modeMask != 0 || xattrs > xattrsMax:
		return fmt.Errorf("type %d, mode %o, %d bytes of extended attributes", e.Type, e.Mode, xattrs)
	case !isFile && !isMore && (e.Size != 0 || e.Offset != 0 || e.First != 0 || len(e.Lengths) > 0):
		return fmt.Errorf("type %d with content", e.Type)
	case (e.Type == EntrySymlink) != (len(e.Target) > 0) || len(e.Target) > targetMax || bytes.IndexByte(e.Target, 0) >= 0:
		return fmt.Errorf("type %d with target %.80q", e.Type, e.Target)
	case isMore && (e.Mode != 0 || e.Mtime != 0 || e.UID != 0 || e.GID != 0 || len(e.Xattrs) > 0 || len(e.Lengths) == 0):
		return fmt.Errorf("more of a file with attributes, or without chunks")
	case isFile && e.Offset != 0, isMore && e.Offset <= 0, isFile && len(e.Lengths) == 0 && (e.Size != 0 || e.First != 0):
		return fmt.Errorf("type %d at offset %d of %d bytes in %d chunks", e.Type, e.Offset, e.Size, len(e.Lengths))
	case e.Size < 0 || e.Size > SizeMax || e.Offset > SizeMax || e.Offset+total > e.Size || e.First >= TreeChunksMax || len(e.Lengths) > EntryChunksMax:
		return fmt.Errorf("%d chunks of %d bytes from %d in a file of %d bytes", len(e.Lengths), total, e.Offset, e.Size)
	}
	return nil
}

func checkPath(path []byte) error {
	if len(path) == 0 || len(path) > pathMax || bytes.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("path of %d bytes, or with a zero byte", len(path))
	}
	for part := range strings.SplitSeq(string(path), "/") {
		if part == "" || part == "." || part == ".." || len(part) > namePartMax {
			return fmt.Errorf("path part %.80q", part)
		}
	}
	return nil
}

// Compare orders a listing: a directory comes directly before what it holds,
// names rise by their bytes, the parts of a long file by their offset.
func (e TreeEntry) Compare(other TreeEntry) int {
	return cmp.Or(comparePaths(e.Path, other.Path), cmp.Compare(e.Offset, other.Offset))
}

// comparePaths compares bytes with '/' below all others.
func comparePaths(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// sizeMax bounds the encoded entry, in bytes.
func (e TreeEntry) sizeMax() int {
	n := 96 + len(e.Path) + 5*len(e.Lengths) + len(e.Target)
	for _, x := range e.Xattrs {
		n += 12 + len(x.Name) + len(x.Value)
	}
	return n
}

// TreeChecker holds a listing to the rules that go beyond one page. Whoever
// unpacks a tree asks it about each entry first: it is what keeps a hostile tree
// from writing through a symbolic link. The zero value is at the top of a tree.
type TreeChecker struct {
	last TreeEntry
	dirs [][]byte // the open directories, from the top
}

// Next fails with ErrCorrupt unless e may follow the entries before it: in
// order, its directory listed, the file before it complete.
func (t *TreeChecker) Next(e TreeEntry) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("tree entry %.300q: %w: %w", e.Path, ErrCorrupt, err)
	}
	if e.Type == EntryMore {
		if !bytes.Equal(e.Path, t.last.Path) || e.Offset != t.last.end() || e.Size != t.last.Size || e.First != t.last.First+uint64(len(t.last.Lengths)) {
			return fmt.Errorf("tree entry %.300q: %w: goes on at %d, the file ended at %d", e.Path, ErrCorrupt, e.Offset, t.last.end())
		}
		t.last = e
		return nil
	}
	if err := t.Finish(); err != nil {
		return err
	}
	if len(t.last.Path) > 0 && comparePaths(t.last.Path, e.Path) >= 0 {
		return fmt.Errorf("tree entry %.300q: %w: out of order", e.Path, ErrCorrupt)
	}
	for len(t.dirs) > 0 && !bytes.HasPrefix(e.Path, append(bytes.Clone(t.dirs[len(t.dirs)-1]), '/')) {
		t.dirs = t.dirs[:len(t.dirs)-1]
	}
	parent := e.Path[:max(0, bytes.LastIndexByte(e.Path, '/'))]
	if len(parent) > 0 && (len(t.dirs) == 0 || !bytes.Equal(t.dirs[len(t.dirs)-1], parent)) {
		return fmt.Errorf("tree entry %.300q: %w: its directory is not listed", e.Path, ErrCorrupt)
	}
	if e.Type == EntryDir {
		t.dirs = append(t.dirs, bytes.Clone(e.Path))
	}
	t.last = e
	return nil
}

// Finish fails with ErrCorrupt when the last file is not complete.
func (t *TreeChecker) Finish() error {
	if t.last.end() != t.last.Size {
		return fmt.Errorf("tree entry %.300q: %w: chunks end at %d of %d bytes", t.last.Path, ErrCorrupt, t.last.end(), t.last.Size)
	}
	return nil
}

// end returns the offset behind the chunks of e.
func (e TreeEntry) end() int64 {
	total := e.Offset
	for _, n := range e.Lengths {
		total += int64(n)
	}
	return total
}
