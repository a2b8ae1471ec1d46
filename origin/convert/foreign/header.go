package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
)

const (
	// headerSize is how much of a file the checks below look at, in bytes.
	headerSize = 512
	// descriptorMax bounds the text of a vmdk, in bytes. QEMU reads as much at the
	// start, however long the file is.
	descriptorMax = 1 << 20
)

var (
	errBacking   = errors.New("it needs its backing file; flatten it with: qemu-img convert -O qcow2 OLD NEW")
	errEncrypted = errors.New("it is encrypted; write it anew without with: qemu-img convert, with the key")
	errPart      = errors.New("it is made of several files; make one of them with: qemu-img convert -O qcow2 THE-ONE-WITH-THE-NAMES NEW")
)

type shape struct {
	head   []byte // what was examined: the child is given that, whatever the file has by then
	atEnd  bool   // it is looked at from its end
	glance int64  // as much is read at its start, if it is there or not
}

// examine refuses an image that needs other files: a child is handed one, and may
// read nothing else of the host.
func examine(file File, driver string) (s shape, err error) {
	head := make([]byte, headerSize)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return s, err
	}
	s.head = head[:n]
	switch driver {
	case "qcow2":
		if binary.BigEndian.Uint32(head[4:]) >= 3 && head[79]&4 != 0 {
			return s, errPart // an external data file
		}
		fallthrough
	case "qcow":
		switch crypt := 32; {
		case binary.BigEndian.Uint64(head[8:]) != 0:
			return s, errBacking
		case driver == "qcow2" && binary.BigEndian.Uint32(head[crypt:]) != 0:
			return s, errEncrypted
		}
	case "qed":
		if head[16]&1 != 0 {
			return s, errBacking
		}
	case "vpc":
		return s, examineVPC(file, head)
	case "vmdk":
		err = s.examineVMDK(file, head)
		return s, err
	}
	return s, nil
}

// examineVPC: the footer, of which the header is a copy, ends a whole file.
func examineVPC(file File, head []byte) error {
	const differencing = 4
	if binary.BigEndian.Uint32(head[60:]) == differencing {
		return errBacking
	}
	foot := make([]byte, headerSize)
	if _, err := file.ReadAt(foot, max(0, file.Size()-headerSize)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if string(foot[:8]) != string(head[:8]) {
		return errors.New("it is cut short: the footer at its end is missing")
	}
	return nil
}

var (
	noParent  = regexp.MustCompile(`(?i)(?m)^\s*parentCID\s*=\s*"?f{8}"?\s*$`)
	anyParent = regexp.MustCompile(`(?i)parentCID\s*=`)
)

func (s *shape) examineVMDK(file File, head []byte) error {
	const compressed, directoryAtEnd = 1 << 16, ^uint64(0)
	capacity, at, size := binary.LittleEndian.Uint64(head[12:]), binary.LittleEndian.Uint64(head[28:]), binary.LittleEndian.Uint64(head[36:])
	if string(head[:4]) != "KDMV" || capacity == 0 || at == 0 {
		return errPart
	}
	const sector = 512
	if at > uint64(file.Size())/sector || size > descriptorMax/sector {
		return errors.New("it is cut short or damaged: its descriptor lies outside of it")
	}
	text := make([]byte, size*sector)
	if _, err := file.ReadAt(text, int64(at)*sector); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if !bytes.Contains(text, []byte("createType")) {
		return errPart
	}
	if anyParent.Match(text) && !noParent.Match(text) {
		return errBacking
	}
	// Compressed grains carry sums, and are read with some of what follows.
	s.atEnd = binary.LittleEndian.Uint32(head[8:])&compressed != 0 || binary.LittleEndian.Uint64(head[56:]) == directoryAtEnd
	s.glance = descriptorMax
	return nil
}
