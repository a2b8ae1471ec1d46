package ublk

// The driver's interface: include/uapi/linux/ublk_cmd.h. Numbers of commands are
// those of an ioctl, which all kernels with user recovery and later ones take.
const (
	controlPath = "/dev/ublk-control"

	ctrlGetInfo       = 2<<30 | 32<<16 | 'u'<<8 | 0x02
	ctrlAdd           = 3<<30 | 32<<16 | 'u'<<8 | 0x04
	ctrlDelete        = 3<<30 | 32<<16 | 'u'<<8 | 0x05
	ctrlStart         = 3<<30 | 32<<16 | 'u'<<8 | 0x06
	ctrlStop          = 3<<30 | 32<<16 | 'u'<<8 | 0x07
	ctrlSetParams     = 3<<30 | 32<<16 | 'u'<<8 | 0x08
	ctrlGetParams     = 2<<30 | 32<<16 | 'u'<<8 | 0x09
	ctrlStartRecovery = 3<<30 | 32<<16 | 'u'<<8 | 0x10
	ctrlEndRecovery   = 3<<30 | 32<<16 | 'u'<<8 | 0x11
	ctrlGetFeatures   = 2<<30 | 32<<16 | 'u'<<8 | 0x13
	ctrlUpdateSize    = 3<<30 | 32<<16 | 'u'<<8 | 0x15

	ioFetch          = 3<<30 | 16<<16 | 'u'<<8 | 0x20
	ioCommitAndFetch = 3<<30 | 16<<16 | 'u'<<8 | 0x21

	featureRecovery = 1 << 3
	featureReissue  = 1 << 4
	featureIoctl    = 1 << 6
	featureUserCopy = 1 << 7
	featureResize   = 1 << 10 // from Linux 6.16 on
	featuresNeeded  = featureRecovery | featureReissue | featureIoctl | featureUserCopy
	// With these, requests are served in other ways.
	featureZeroCopy   = 1 << 0
	featureGetData    = 1 << 2
	featureZoned      = 1 << 8
	featureAutoBuffer = 1 << 11
	featuresOther     = featureZeroCopy | featureGetData | featureZoned | featureAutoBuffer

	// Where a request's data is in its device's file: each queue has as many tags,
	// and each tag as many bytes, as these leave room for. It takes 64 bits.
	dataOffset uintptr = 1 << 31
	dataQueue  uintptr = 1 << 41
	dataTag    uintptr = 1 << 25

	stateDead = 0 // not started, or stopped
	stateLive = 1 // the other is quiesced, 2

	noQueue = 0xffff
	newID   = 1<<32 - 1

	attrReadOnly      = 1 << 0
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3

	paramBasic   = 1 << 0
	paramDiscard = 1 << 1

	reqRead        = 0
	reqWrite       = 1
	reqFlush       = 2
	reqDiscard     = 3
	reqWriteZeroes = 5
	reqMask        = 0xff
	reqFUA         = 1 << 13
	reqNoUnmap     = 1 << 15 // zeros that keep their space

	sectorSize = 512
)

// controlCommand is struct ublksrv_ctrl_cmd.
type controlCommand struct {
	id      uint32
	queue   uint16
	length  uint16
	addr    uint64
	data    uint64
	pathLen uint16
	_       uint16
	_       uint32
}

// info is struct ublksrv_ctrl_dev_info.
type info struct {
	queues, depth, state, _ uint16
	requestMax              uint32 // bytes
	id                      uint32
	pid                     int32 // of the server
	_                       uint32
	flags                   uint64
	owner                   uint64 // for servers to use as they like
	_                       [3]uint64
}

// params is struct ublk_params.
type params struct {
	length, types uint32
	basic         struct {
		attrs                                           uint32
		logicalShift, physicalShift, optShift, minShift uint8
		maxSectors, chunkSectors                        uint32
		sectors, virtBoundary                           uint64
	}
	discard struct {
		align, granularity, maxSectors, maxZeroSectors uint32
		maxSegments, _                                 uint16
	}
	_ [52]byte // of special and zoned devices
}

// fits reports whether a device of these parameters can go on as one of other's, which
// may have grown.
func (p params) fits(other params) bool {
	a, b := p.basic, other.basic
	return a.sectors <= b.sectors && a.logicalShift == b.logicalShift && a.attrs&attrReadOnly == b.attrs&attrReadOnly
}

// ioCommand is struct ublksrv_io_cmd.
type ioCommand struct {
	queue, tag uint16
	res        int32
	_          uint64
}

// descriptor is struct ublksrv_io_desc: a request, in memory that the kernel
// writes.
type descriptor struct {
	op      uint32 // one of req in the low byte, and flags
	sectors uint32
	start   uint64 // sector
	_       uint64
}
