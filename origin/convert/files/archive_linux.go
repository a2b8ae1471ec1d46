package files

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// Archive is a tree in a tar file, by its path; contents has looked at it.
type Archive string

func (a Archive) Each(ctx context.Context, do func(*Entry) error) error {
	f, err := os.Open(string(a))
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(bufio.NewReaderSize(f, ReadAtOnce))
	buf := make([]byte, ReadAtOnce) // of one file after the other
	t := &given{do: do, folders: map[string]bool{}}
	if err := t.give(&Entry{Path: ".", Mode: impliedMode}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF): // the end, as contents has found
			return nil
		case err != nil:
			return fmt.Errorf("%w: the tar file is cut or damaged: %w", content.ErrInvalid, err)
		case h.Typeflag == tar.TypeXGlobalHeader:
			continue
		}
		e, err := fromHeader(h)
		if err != nil {
			return fmt.Errorf("%w: %q in the tar file: %w", content.ErrInvalid, h.Name, err)
		}
		if e.Is(unix.S_IFREG) && e.Same == "" {
			e.Data = func(yield func([]byte, int64) error) error { return streamed(ctx, r, buf, yield) }
		}
		if err := t.give(e); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // so that what Next reads is a header, or the end
			return fmt.Errorf("%w: %q in the tar file is cut or damaged: %w", content.ErrInvalid, h.Name, err)
		}
	}
	return context.Cause(ctx)
}

// impliedMode is that of folders that a tar file has files of, and no entry for.
const impliedMode = unix.S_IFDIR | 0o755

// given hands entries on, each after the folders that it lies in.
type given struct {
	do      func(*Entry) error
	folders map[string]bool // what was given, and whether it is a folder
}

func (t *given) give(e *Entry) error {
	if _, ok := t.folders[path.Dir(e.Path)]; !ok && e.Path != "." {
		if err := t.give(&Entry{Path: path.Dir(e.Path), Mode: impliedMode}); err != nil {
			return err
		}
	}
	isFolder := e.Is(unix.S_IFDIR)
	if t.folders[e.Path] && !isFolder {
		return fmt.Errorf("%w: %q is a folder of the tar file, and a file of it", content.ErrInvalid, e.Path)
	}
	t.folders[e.Path] = isFolder
	return t.do(e)
}

// streamed reads a file of the stream. Zeros are holes: the library fills them in.
func streamed(ctx context.Context, r io.Reader, buf []byte, yield func([]byte, int64) error) error {
	for off := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(r, buf)
		if err := NotZero(buf[:n], off, yield); err != nil {
			return err
		}
		switch off += int64(n); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && n > 0:
			return nil // a file that is cut is found by whoever reads on
		case err != nil:
			return fmt.Errorf("%w: the tar file is cut or damaged: %w", content.ErrInvalid, err)
		}
	}
}

func fromHeader(h *tar.Header) (*Entry, error) {
	inside := func(name string) string {
		if name = path.Clean("/" + name)[1:]; name == "" {
			return "."
		}
		return name
	}
	kinds := map[byte]uint32{
		tar.TypeReg: unix.S_IFREG, tar.TypeCont: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeLink: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK,
		tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeDir: unix.S_IFDIR, tar.TypeFifo: unix.S_IFIFO,
	}
	kind, ok := kinds[h.Typeflag]
	if !ok {
		return nil, fmt.Errorf("%w: entries of type %q", errors.ErrUnsupported, h.Typeflag)
	}
	e := &Entry{
		Path: inside(h.Name), Mode: kind | uint32(h.Mode)&0o7777, UID: h.Uid, GID: h.Gid, Size: h.Size,
		Mtime: unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}, Device: unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)),
		Xattrs: map[string]string{},
	}
	switch {
	case len(e.Path) >= unix.PathMax:
		return nil, fmt.Errorf("a path of %d bytes, the limit is %d", len(e.Path), unix.PathMax-1)
	case e.Size > content.SizeMax: // it may be all holes
		return nil, fmt.Errorf("a file of %d bytes, the largest disk has %d", e.Size, int64(content.SizeMax))
	case h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32:
		return nil, fmt.Errorf("the owner %d:%d is none that Linux has", h.Uid, h.Gid)
	case e.Path == "." && kind != unix.S_IFDIR:
		return nil, errors.New("the root of a tree is a folder")
	case h.Typeflag == tar.TypeLink:
		e.Same = inside(h.Linkname)
	case h.Typeflag == tar.TypeSymlink:
		e.Target = h.Linkname
	}
	return e, e.records(h.PAXRecords)
}

// records takes over the extended attributes and access lists that tar (SCHILY) and bsdtar
// (LIBARCHIVE) write.
func (e *Entry) records(all map[string]string) error {
	for key, value := range all {
		if name, ok := strings.CutPrefix(key, "LIBARCHIVE.xattr."); ok {
			plain, err := url.PathUnescape(name)
			if err != nil {
				return err
			}
			text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return err
			}
			e.Xattrs[plain] = string(text)
		}
	}
	for key, value := range all {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.Xattrs[name] = value
		} else if which, ok := strings.CutPrefix(key, "SCHILY.acl."); ok {
			list, err := accessList(value)
			if err != nil {
				e.Lost = fmt.Sprintf("its access list is lost: %v", err)
				continue
			}
			if which == "default" || len(list) > plainList {
				e.Xattrs["system.posix_acl_"+which] = list
			}
		}
	}
	return nil
}

// plainList is the length of an access list that says what the mode says.
const plainList = 4 + 3*8

// accessList turns a POSIX access list as text into what Linux keeps: a version, and
// for each line a tag, permissions and an ID, in the order of the tags. tar writes
// names, which then are this host's, as tar takes them itself.
func accessList(text string) (string, error) {
	tags := map[string]uint32{"user": 0x01, "u": 0x01, "group": 0x04, "g": 0x04, "mask": 0x10, "m": 0x10, "other": 0x20, "o": 0x20}
	const named = 2 // times the tag of an owner is that of one with a name
	var lines [][]uint32
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		word, _, _ = strings.Cut(word, "#")
		part := strings.Split(strings.TrimSpace(word), ":")
		if len(part) < 3 || tags[part[0]] == 0 {
			return "", fmt.Errorf("%q can't be read", text)
		}
		tag, id := tags[part[0]], ^uint32(0)
		if part[1] != "" {
			var err error
			if id, err = idOf(part, tag == tags["group"]); err != nil {
				return "", err
			}
			tag *= named
		}
		var perm uint32
		for i, c := range "xwr" {
			if strings.ContainsRune(part[2], c) {
				perm |= 1 << i
			}
		}
		lines = append(lines, []uint32{tag, id, perm})
	}
	slices.SortFunc(lines, slices.Compare)
	out := []byte{2, 0, 0, 0}
	for _, l := range lines {
		out = binary.LittleEndian.AppendUint16(out, uint16(l[0]))
		out = binary.LittleEndian.AppendUint16(out, uint16(l[2]))
		out = binary.LittleEndian.AppendUint32(out, l[1])
	}
	return string(out), nil
}

// idOf whom a line of an access list names: by a number, which bsdtar puts last, or as the host does.
func idOf(part []string, group bool) (uint32, error) {
	text := part[len(part)-1]
	if len(part) < 4 {
		text = part[1]
	}
	if id, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(id), nil
	}
	if group {
		g, err := user.LookupGroup(part[1])
		if err != nil {
			return 0, err
		}
		text = g.Gid
	} else {
		u, err := user.Lookup(part[1])
		if err != nil {
			return 0, err
		}
		text = u.Uid
	}
	id, err := strconv.ParseUint(text, 10, 32)
	return uint32(id), err
}
