package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// optionMax bounds the data of one option: a name and some queries.
	optionMax = 64 << 10
	// exportZeroes pad the oldest reply that opens an export.
	exportZeroes = 124
)

// handshake brings a client to an open export, within its time, of which waiting for
// the export is no part. errLeave means that the client wants none.
func (c *conn) handshake() error {
	h := haggle{conn: c, until: time.Now().Add(c.server.cfg.HandshakeTimeout)}
	if err := c.patience(h.until); err != nil {
		return err
	}
	if err := h.greet(); err != nil {
		return c.leaving(err)
	}
	for c.device == nil {
		if err := h.step(); err != nil {
			return c.leaving(err)
		}
	}
	return c.patience(time.Time{})
}

type haggle struct {
	*conn
	until    time.Time // when the client's time is over
	noZeroes bool
	meta     *string // the export whose block status the client wants
	chosen   []metaContext
}

func (h *haggle) greet() error {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, handshakeFixedNewstyle|handshakeNoZeroes)
	if err := h.write(b); err != nil {
		return err
	}
	p, err := h.in.need(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(p)
	if flags&^(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return fmt.Errorf("client flags %#x: %w", flags, content.ErrInvalid)
	}
	h.noZeroes = flags&handshakeNoZeroes != 0
	return nil
}

func (h *haggle) step() error {
	p, err := h.in.need(optionSize)
	if err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint64(p); magic != magicOption {
		return fmt.Errorf("option magic %#x: %w", magic, content.ErrInvalid)
	}
	code, length := binary.BigEndian.Uint32(p[8:]), binary.BigEndian.Uint32(p[12:])
	if length > optionMax {
		if err := h.in.skip(int64(length)); err != nil {
			return err
		}
		return h.refuse(code, repErrTooBig, fmt.Sprintf("%d bytes of data, at most %d", length, optionMax))
	}
	data, err := h.in.need(int(length))
	if err != nil {
		return err
	}
	return h.answer(option{code, data})
}

func (h *haggle) answer(o option) error {
	switch {
	case !h.plain() || o.code == optStartTLS || o.code == optAbort:
	case o.code == optExportName: // which knows no errors
		return fmt.Errorf("an export is asked for without TLS: %w", content.ErrInvalid)
	default:
		return h.refuse(o.code, repErrTLSRequired, "this server wants TLS, and a certificate")
	}
	switch o.code {
	case optExportName:
		return h.exportName(string(o.data))
	case optAbort:
		if err := h.reply(o.code, repAck); err != nil {
			return err
		}
		return errLeave
	case optList:
		return h.list(o)
	case optInfo, optGo:
		return h.info(o)
	case optStructuredReply:
		if len(o.data) > 0 {
			return h.refuse(o.code, repErrInvalid, "takes no data")
		}
		h.structured = true
		return h.reply(o.code, repAck)
	case optListMeta, optSetMeta:
		return h.metaContexts(o)
	case optStartTLS:
		return h.startTLS(o)
	}
	return h.refuse(o.code, repErrUnsup, "unknown option")
}

// exportName opens the export in the oldest way, which knows no errors.
func (h *haggle) exportName(name string) error {
	if _, err := h.find(optGo, name); err != nil {
		return err
	}
	h.settle(name)
	b := binary.BigEndian.AppendUint64(nil, uint64(h.device.Geometry().Size))
	b = binary.BigEndian.AppendUint16(b, h.device.flags(h.structured))
	if !h.noZeroes {
		b = append(b, make([]byte, exportZeroes)...)
	}
	return h.write(b)
}

func (h *haggle) list(o option) error {
	if len(o.data) > 0 {
		return h.refuse(o.code, repErrInvalid, "takes no data")
	}
	names, err := h.server.cfg.Exports.List(h.ctx)
	if err != nil {
		return h.refuseError(o.code, fmt.Errorf("list exports: %w", err))
	}
	var b []byte
	for _, name := range names {
		b = appendAnswer(b, o.code, repServer, binary.BigEndian.AppendUint32(nil, uint32(len(name))), []byte(name))
	}
	return h.write(appendAnswer(b, o.code, repAck))
}

// info answers optInfo, and optGo which opens the export for good.
func (h *haggle) info(o option) error {
	name, err := parseInfo(o.data)
	if err != nil {
		return h.refuseError(o.code, err)
	}
	d, err := h.find(o.code, name)
	if err != nil {
		return h.refuseError(o.code, err)
	}
	g := d.Geometry()
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(g.Size))
	export = binary.BigEndian.AppendUint16(export, d.flags(h.structured))
	sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	sizes = binary.BigEndian.AppendUint32(sizes, uint32(g.BlockSize))
	sizes = binary.BigEndian.AppendUint32(sizes, preferredSize(g.BlockSize, g.PreferredSize))
	sizes = binary.BigEndian.AppendUint32(sizes, payloadMax)
	b := appendAnswer(nil, o.code, repInfo, export)
	b = appendAnswer(b, o.code, repInfo, binary.BigEndian.AppendUint16(nil, infoName), []byte(name))
	b = appendAnswer(b, o.code, repInfo, sizes)
	if o.code == optGo {
		h.settle(name)
	} else {
		d.release()
	}
	return h.write(appendAnswer(b, o.code, repAck))
}

// find opens the export for good on optGo, else for the caller to release. How long that
// takes is given to the client on top of its time.
func (h *haggle) find(code uint32, name string) (d *device, err error) {
	since := time.Now()
	if code == optGo {
		err = h.open(name)
		d = h.device
	} else {
		d, err = h.lookup(name)
	}
	h.until = h.until.Add(time.Since(since))
	_ = h.patience(h.until) // a connection that drains says so when it is read from
	return d, err
}

// settle fixes what may be asked of the opened export.
func (h *haggle) settle(name string) {
	if h.structured && h.meta != nil && *h.meta == name {
		h.contexts = h.chosen
	}
}

// preferredSize is a power of two from the block size up to the payload's bound,
// as the protocol demands, near what the device prefers.
func preferredSize(block, preferred int) uint32 {
	size := max(block, 4<<10)
	for size < preferred && size < payloadMax {
		size *= 2
	}
	return uint32(size)
}

func (h *haggle) metaContexts(o option) error {
	if !h.structured && o.code == optSetMeta {
		return h.refuse(o.code, repErrInvalid, "structured replies come first")
	}
	name, queries, err := parseMeta(o.data)
	if err != nil {
		return h.refuseError(o.code, err)
	}
	if o.code == optSetMeta {
		h.meta, h.chosen = nil, nil // whatever becomes of this one, it replaces the last
	}
	d, err := h.find(o.code, name)
	if err != nil {
		return h.refuseError(o.code, err)
	}
	all, err := d.contexts(h.ctx, len(queries) == 0 && o.code == optListMeta || slices.ContainsFunc(queries, isBitmap))
	d.release()
	if err != nil && len(queries) > 0 {
		return h.refuseError(o.code, fmt.Errorf("list the snapshots of %.140q: %w", name, err))
	}
	var b []byte
	var chosen []metaContext
	for _, m := range all {
		if !m.asked(o.code, queries) {
			continue
		}
		m.id = 0 // in a list
		if o.code == optSetMeta {
			m.id = contextBaseID + uint32(len(chosen))
		}
		chosen = append(chosen, m)
		b = appendAnswer(b, o.code, repMetaContext, binary.BigEndian.AppendUint32(nil, m.id), []byte(m.name))
	}
	if o.code == optSetMeta {
		if len(chosen) > contextsMax {
			return h.refuse(o.code, repErrTooBig, fmt.Sprintf("%d metadata contexts, at most %d at once", len(chosen), contextsMax))
		}
		h.meta, h.chosen = &name, chosen
	}
	return h.write(appendAnswer(b, o.code, repAck))
}

// contexts returns the metadata contexts of a device, without ids. The bitmaps may be far
// away: who does not want them does not ask.
func (d *device) contexts(ctx context.Context, bitmaps bool) ([]metaContext, error) {
	all := []metaContext{{name: contextBase}}
	h, ok := d.Device.(blockdev.History)
	if !ok || !bitmaps {
		return all, nil
	}
	snapshots, err := h.Snapshots(ctx)
	if err != nil {
		return all, err
	}
	for _, from := range snapshots {
		all = append(all, metaContext{name: contextBitmap + strconv.FormatUint(from, 10), from: from})
	}
	return all, nil
}

func (h *haggle) write(b []byte) error {
	if _, err := h.stream.Write(b); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

func (h *haggle) reply(code, kind uint32) error { return h.write(appendAnswer(nil, code, kind)) }

func (h *haggle) refuse(code, kind uint32, words string) error {
	return h.write(appendAnswer(nil, code, kind, []byte(words[:min(len(words), nameMax)])))
}

func (h *haggle) refuseError(code uint32, err error) error {
	kind := uint32(repErrUnknown)
	switch {
	case errors.Is(err, errLeave):
		return err
	case errors.Is(err, content.ErrClosed):
		kind = repErrShutdown
	case errors.Is(err, content.ErrForbidden):
		kind = repErrPolicy
	case errors.Is(err, content.ErrInvalid):
		kind = repErrInvalid
	}
	return h.refuse(code, kind, err.Error())
}

func (d *device) flags(structured bool) uint16 {
	flags := uint16(transmitHasFlags | transmitFlush | transmitFUA | transmitMultiConn | transmitCache)
	if structured {
		flags |= transmitDF
	}
	if d.Geometry().ReadOnly {
		return flags | transmitReadOnly
	}
	return flags | transmitTrim | transmitWriteZeroes | transmitFastZero
}
