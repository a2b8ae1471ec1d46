package convert

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/foreign"
)

// mark is what files of a kind have at a place.
type mark[T any] struct {
	at    int
	magic string
	kind  T
}

func kindOf[T any](head []byte, marks []mark[T]) (kind T, ok bool) {
	for _, m := range marks {
		if bytes.HasPrefix(head[min(m.at, len(head)):], []byte(m.magic)) {
			return m.kind, true
		}
	}
	return kind, false
}

// other is a kind of files that are no disks, with what to do about it.
type other struct{ what, advice string }

// disks are the formats that QEMU's tools read.
func disks() []mark[Format] {
	return []mark[Format]{
		{0, "QFI\xfb\x00\x00\x00\x01", QCOW}, {0, "QFI\xfb", QCOW2}, {0, "QED\x00", QED},
		{0, "KDMV", VMDK}, {0, "COWD", VMDK}, {0, "\xbe\xba\xfe\xca\x00\x00\x00\x00", VMDK}, {0, "# Disk DescriptorFile", VMDK},
		{0, "vhdxfile", VHDX}, {0, footerMagic, VPC}, {64, "\x7f\x10\xda\xbe", VDI},
		{0, "WithoutFreeSpace", Parallels}, {0, "WithouFreSpacExt", Parallels},
	}
}

// compressions are what is inflated first, whatever is inside.
func compressions() []mark[foreign.Compression] {
	return []mark[foreign.Compression]{
		{0, "\x1f\x8b\x08", foreign.Compression{Tool: "gzip", Package: "gzip"}},
		{0, "BZh", foreign.Compression{Tool: "bzip2", Package: "bzip2"}},
		{0, "\xfd7zXZ\x00", foreign.Compression{Tool: "xz", Package: "xz-utils"}},
		{0, "\x28\xb5\x2f\xfd", foreign.Compression{Tool: "zstd", Package: "zstd"}},
	}
}

// others are no disks.
func others() []mark[other] {
	return []mark[other]{
		{0, "PK\x03\x04", other{"a zip archive", unzip}}, {0, "PK\x05\x06", other{"a zip archive", unzip}},
		{0, "7z\xbc\xaf\x27\x1c", other{"a 7z archive", unarchive}}, {0, "Rar!\x1a\x07", other{"a rar archive", unarchive}},
		{0, "070701", other{"a cpio archive", unarchive}}, {0, "070702", other{"a cpio archive", unarchive}}, {0, "070707", other{"a cpio archive", unarchive}},
		{0, "!<arch>\n", other{"an ar archive or Debian package", unarchive}}, {0, "\xed\xab\xee\xdb", other{"an rpm package", unarchive}}, {0, "xar!", other{"a xar archive", unarchive}},
		{0, "MSWIM\x00\x00\x00", other{"a wim archive", unarchive}}, {0, "\x3a\xff\x26\xed", other{"an Android sparse image", "make a raw disk of it with simg2img"}},
		{0, "\x04\x22\x4d\x18", other{"compressed with lz4", inflate}}, {0, "\x02\x21\x4c\x18", other{"compressed with lz4", inflate}}, {0, "LZIP", other{"compressed with lzip", inflate}},
		{0, "\x89LZO", other{"compressed with lzop", inflate}}, {0, "\x1f\x9d", other{"compressed with compress", inflate}}, {0, "\x5d\x00\x00", other{"compressed with lzma", inflate}},
		{0, "\x7fELF", other{"a program", noDisk}}, {0, "MZ", other{"a program", noDisk}}, {0, "\x89PNG\r\n", other{"a picture", noDisk}}, {0, "\xff\xd8\xff", other{"a picture", noDisk}}, {0, "%PDF-", other{"a document", noDisk}},
	}
}

const (
	unzip     = "pipe what is inside: unzip -p FILE | grange image import NAME -"
	unarchive = "unpack it, and import the disk or the directory"
	inflate   = "inflate it first, or pipe it: COMMAND | grange image import NAME -"
	noDisk    = "nothing boots or mounts it"
	insist    = "; to import its bytes as they are, give --format raw"

	footerMagic = "conectix"
	footerSize  = 512
	fixedDisk   = 2
	// headSize is how much of a file the marks lie in, in bytes.
	headSize = 512
)

func head(r io.ReaderAt) ([]byte, error) {
	b := make([]byte, headSize)
	n, err := r.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}

// compression tells what a file is compressed with.
func compression(head []byte) (foreign.Compression, bool) {
	c, ok := kindOf(head, compressions())
	if c.Tool == "bzip2" { // three letters prove little: its first block, or its end, has to follow
		_, ok = kindOf(head, []mark[bool]{{4, "1AY&SY", true}, {4, "\x17\x72\x45\x38\x50\x90", true}})
	}
	return c, ok
}

// detect tells what a source is. What can't be a disk is ErrInvalid.
func detect(s *source) (Format, error) {
	head, err := head(s)
	if err != nil {
		return "", err
	}
	if format, ok := kindOf(head, disks()); ok {
		return format, nil
	}
	if o, ok := kindOf(head, others()); ok {
		return "", fmt.Errorf("%w: it is %s: %s%s", content.ErrInvalid, o.what, o.advice, insist)
	}
	if _, err := tar.NewReader(io.NewSectionReader(s, 0, s.Size())).Next(); err == nil {
		return Tar, nil
	}
	end, err := foot(s)
	if err != nil {
		return "", err
	}
	fixed, err := fixedSize(s)
	switch {
	case err != nil:
		return "", err
	case bytes.HasPrefix(end, []byte("koly")):
		return "", fmt.Errorf("%w: it is a disk image of macOS: make a raw disk of it with dmg2img%s", content.ErrInvalid, insist)
	case fixed > 0:
		return VPC, nil
	case len(head) > 0 && utf8.Valid(head[:max(1, len(head)-utf8.UTFMax)]) && !bytes.ContainsRune(head, 0):
		return "", fmt.Errorf("%w: it is text: %s%s", content.ErrInvalid, noDisk, insist)
	case s.Size()%content.SectorSize != 0:
		return "", fmt.Errorf("%w: it is no disk of a known format, and its %d bytes are no whole number of sectors: it may be cut short%s", content.ErrInvalid, s.Size(), insist)
	}
	return Raw, nil
}

// foot returns the last bytes of a source, of one that has more.
func foot(s *source) ([]byte, error) {
	if s.Size() <= footerSize {
		return nil, nil
	}
	b := make([]byte, footerSize)
	_, err := s.ReadAt(b, s.Size()-footerSize)
	return b, err
}

// fixedSize returns how long the disk of a fixed vhd is, all of whose file it is but
// for a footer; 0 for other files.
func fixedSize(s *source) (int64, error) {
	end, err := foot(s)
	if err != nil || !bytes.HasPrefix(end, []byte(footerMagic)) || binary.BigEndian.Uint32(end[60:]) != fixedDisk {
		return 0, err
	}
	size := s.Size() - footerSize
	if says := binary.BigEndian.Uint64(end[48:]); says > uint64(size) {
		return 0, fmt.Errorf("%w: it is cut short: a fixed vhd of %d bytes in a file of %d", content.ErrInvalid, says, s.Size())
	}
	return size, nil
}

type member struct {
	name      string
	off, size int64
	holes     bool // it is not whole in its place
}

// blocks remembers whether the block that was read last is zeros, as those are that end a tar.
type blocks struct {
	*io.SectionReader
	zero bool
}

func (b *blocks) Read(p []byte) (int, error) {
	n, err := b.SectionReader.Read(p)
	if n > 0 {
		b.zero = n == tarBlock && content.IsZero(p[:n])
	}
	return n, err
}

// tarBlock is what tar files are made of: the end is at least one of zeros.
const tarBlock = 512

// noTree says what a tar with a member of this name is, if that is no tree of files.
func noTree(member string) string {
	switch member {
	case "ova.xml":
		return "a XenServer appliance: unpack it, and import the disk"
	}
	return ""
}

// contents walks through a tar to its end, which must be there. It returns the files
// of a virtual appliance, whose first is its description; none of other tars.
func contents(s *source, tree bool) (appliance []member, err error) {
	in := &blocks{SectionReader: io.NewSectionReader(s, 0, s.Size())}
	r := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) && in.zero:
			return appliance, nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: the mark of a tar's end is missing: it is cut short, or its writer leaves it out; unpack it and import the directory", content.ErrInvalid)
		case err != nil:
			return nil, fmt.Errorf("%w: it is cut short or damaged: %w", content.ErrInvalid, err)
		}
		name := path.Clean(h.Name)
		if what := noTree(name); what != "" && !tree {
			return nil, fmt.Errorf("%w: it is %s; to import its files, give --format tar", content.ErrInvalid, what)
		}
		if ovf := n == 0 && strings.EqualFold(path.Ext(name), ".ovf"); !tree && (ovf || len(appliance) > 0) {
			at, _ := in.Seek(0, io.SeekCurrent) // which can't fail
			appliance = append(appliance, member{name, at, h.Size, hasHoles(h)})
		}
	}
}

// hasHoles reports whether a tar has a file without its holes.
func hasHoles(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func disk(appliance []member) (member, error) {
	var found []string
	var it member
	for _, m := range appliance {
		switch strings.ToLower(path.Ext(m.name)) {
		case ".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".img", ".raw":
			found, it = append(found, m.name), m
		}
	}
	if len(found) != 1 {
		return it, fmt.Errorf("%w: a virtual appliance with %d disks (%s): unpack it with tar, and import each under a name of its own", content.ErrInvalid, len(found), strings.Join(found, ", "))
	}
	if it.holes {
		return it, fmt.Errorf("%w: %s in a virtual appliance was stored without its holes: unpack it with tar, and import that", content.ErrInvalid, it.name)
	}
	return it, nil
}
