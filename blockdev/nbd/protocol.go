package nbd

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

// The numbers of the protocol, named as in its specification without the prefix
// NBD_, in the order of a connection's life.
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT", also each option's magic
	magicAnswer = 0x0003e889045565a9 // of a reply to an option

	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repAck            = 1
	repServer         = 2
	repInfo           = 3
	repMetaContext    = 4
	repErrUnsup       = 1<<31 + 1
	repErrPolicy      = 1<<31 + 2
	repErrInvalid     = 1<<31 + 3
	repErrTLSRequired = 1<<31 + 5
	repErrUnknown     = 1<<31 + 6
	repErrShutdown    = 1<<31 + 7
	repErrTooBig      = 1<<31 + 9

	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3

	transmitHasFlags    = 1 << 0
	transmitReadOnly    = 1 << 1
	transmitFlush       = 1 << 2
	transmitFUA         = 1 << 3
	transmitTrim        = 1 << 5
	transmitWriteZeroes = 1 << 6
	transmitDF          = 1 << 7
	transmitMultiConn   = 1 << 8
	transmitCache       = 1 << 10
	transmitFastZero    = 1 << 11

	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagDF       = 1 << 2
	flagReqOne   = 1 << 3
	flagFastZero = 1 << 4

	chunkDone   = 1 << 0
	chunkData   = 1
	chunkHole   = 2
	chunkStatus = 5
	chunkError  = 1<<15 + 1

	stateHole = 1 << 0
	stateZero = 1 << 1

	stateDirty = 1 << 0 // of a bitmap
)

const (
	requestSize    = 28
	simpleSize     = 16
	structuredSize = 20
	optionSize     = 16

	// dataHead are the bytes before the data of a data chunk.
	dataHead = structuredSize + 8

	// The metadata contexts that are offered, and the id of the first: what the device has, and for each snapshot that
	// it remembers what was written since, as qemu calls and tells it. The id of a bitmap is its place among those that
	// the client has chosen.
	contextBase   = "base:allocation"
	contextBitmap = "qemu:dirty-bitmap:" // and the number of the snapshot
	contextBaseID = 1
	contextsMax   = 8 // for one client: a block status tells of all of them
)

// metaContext is one that a client may ask for.
type metaContext struct {
	id   uint32
	name string
	from uint64 // the snapshot, of a bitmap
}

// isBitmap reports whether a query asks for bitmaps.
func isBitmap(query string) bool { return query == "qemu:" || strings.HasPrefix(query, contextBitmap) }

// asked reports whether a client that gave the queries means the context. No query at all
// asks for everything in a list, and for nothing in a set; only lists know prefixes.
func (m metaContext) asked(code uint32, queries []string) bool {
	for _, q := range queries {
		space, _, _ := strings.Cut(m.name, ":")
		if q == m.name || code == optListMeta && (q == space+":" || q == contextBitmap && strings.HasPrefix(m.name, q)) {
			return true
		}
	}
	return code == optListMeta && len(queries) == 0
}

type request struct {
	flags   uint16
	command uint16
	cookie  uint64
	offset  uint64
	length  uint32
}

func parseRequest(p []byte) (request, error) {
	if magic := binary.BigEndian.Uint32(p); magic != magicRequest {
		return request{}, fmt.Errorf("request magic %#x: %w", magic, content.ErrInvalid)
	}
	return request{
		flags:   binary.BigEndian.Uint16(p[4:]),
		command: binary.BigEndian.Uint16(p[6:]),
		cookie:  binary.BigEndian.Uint64(p[8:]),
		offset:  binary.BigEndian.Uint64(p[16:]),
		length:  binary.BigEndian.Uint32(p[24:]),
	}, nil
}

// appendSimple appends a simple reply; what a read read comes behind it.
func appendSimple(b []byte, cookie uint64, code blockdev.Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// chunk is the head of one chunk of a structured reply.
type chunk struct {
	flags  uint16
	kind   uint16
	cookie uint64
	length uint32
}

func (c chunk) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, c.flags)
	b = binary.BigEndian.AppendUint16(b, c.kind)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	return binary.BigEndian.AppendUint32(b, c.length)
}

// appendError appends the one chunk of a structured reply that failed, with words for the client's log.
func appendError(b []byte, cookie uint64, code blockdev.Errno, words string) []byte {
	b = chunk{chunkDone, chunkError, cookie, uint32(6 + len(words))}.append(b)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(words)))
	return append(b, words...)
}

// option is one step of the handshake; data is valid until the next read.
type option struct {
	code uint32
	data []byte
}

func appendAnswer(b []byte, option, kind uint32, data ...[]byte) []byte {
	size := 0
	for _, d := range data {
		size += len(d)
	}
	b = binary.BigEndian.AppendUint64(b, magicAnswer)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	for _, d := range data {
		b = append(b, d...)
	}
	return b
}

// parseInfo reads the data of optInfo and optGo: the export's name. What the client asks to be told is told anyway.
func parseInfo(data []byte) (name string, err error) {
	name, data, err = cutString(data)
	if err != nil {
		return "", err
	}
	if len(data) < 2 || len(data) != 2+2*int(binary.BigEndian.Uint16(data)) {
		return "", fmt.Errorf("%w: %d bytes of information requests", content.ErrInvalid, len(data))
	}
	return name, nil
}

// parseMeta reads the data of optListMeta and optSetMeta: the export's name, and the queries.
func parseMeta(data []byte) (name string, queries []string, err error) {
	name, data, err = cutString(data)
	if err != nil {
		return "", nil, err
	}
	if len(data) < 4 {
		return "", nil, fmt.Errorf("%w: no count of queries", content.ErrInvalid)
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for range count {
		var query string
		if query, data, err = cutString(data); err != nil {
			return "", nil, err
		}
		queries = append(queries, query)
	}
	if len(data) > 0 {
		return "", nil, fmt.Errorf("%w: %d bytes behind the queries", content.ErrInvalid, len(data))
	}
	return name, queries, nil
}

func cutString(data []byte) (s string, rest []byte, err error) {
	if len(data) < 4 {
		return "", nil, fmt.Errorf("%w: a string of %d bytes with its length", content.ErrInvalid, len(data))
	}
	n := binary.BigEndian.Uint32(data)
	if n > nameMax || int(n) > len(data)-4 {
		return "", nil, fmt.Errorf("%w: a string of %d in %d bytes, at most %d", content.ErrInvalid, n, len(data)-4, nameMax)
	}
	s = string(data[4 : 4+n])
	if strings.ContainsRune(s, 0) {
		return "", nil, fmt.Errorf("%w: a string that contains a zero byte", content.ErrInvalid)
	}
	return s, data[4+n:], nil
}
