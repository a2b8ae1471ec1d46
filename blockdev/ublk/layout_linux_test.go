package ublk

import (
	"testing"
	"unsafe"
)

// TestLayouts compares our structs with the kernel's sizes and offsets.
func TestLayouts(t *testing.T) {
	var (
		p ringParams
		s submission
		c controlCommand
		i info
		q params
		o ioCommand
		r descriptor
	)
	for _, x := range []struct {
		what      string
		got, want uintptr
	}{
		{"io_uring_params", unsafe.Sizeof(p), 120}, {".features", unsafe.Offsetof(p.features), 20},
		{".sq_off", unsafe.Offsetof(p.sq), 40}, {".cq_off", unsafe.Offsetof(p.cq), 80},
		{"io_uring_sqe", unsafe.Sizeof(s), 64}, {".addr", unsafe.Offsetof(s.addr), 16},
		{".poll32_events", unsafe.Offsetof(s.opFlags), 28}, {".user_data", unsafe.Offsetof(s.userData), 32}, {".cmd", unsafe.Offsetof(s.payload), 48},
		{"io_uring_cqe", unsafe.Sizeof(completion{}), 16},
		{"ublksrv_ctrl_cmd", unsafe.Sizeof(c), 32}, {".addr", unsafe.Offsetof(c.addr), 8}, {".data", unsafe.Offsetof(c.data), 16},
		{"ublksrv_ctrl_dev_info", unsafe.Sizeof(i), 64}, {".max_io_buf_bytes", unsafe.Offsetof(i.requestMax), 8},
		{".dev_id", unsafe.Offsetof(i.id), 12}, {".ublksrv_pid", unsafe.Offsetof(i.pid), 16},
		{".flags", unsafe.Offsetof(i.flags), 24}, {".ublksrv_flags", unsafe.Offsetof(i.owner), 32},
		{"ublk_params", unsafe.Sizeof(q), 112}, {".max_sectors", unsafe.Offsetof(q.basic) + unsafe.Offsetof(q.basic.maxSectors), 16},
		{".dev_sectors", unsafe.Offsetof(q.basic) + unsafe.Offsetof(q.basic.sectors), 24}, {".discard", unsafe.Offsetof(q.discard), 40},
		{".max_discard_segments", unsafe.Offsetof(q.discard) + unsafe.Offsetof(q.discard.maxSegments), 56},
		{"ublksrv_io_cmd", unsafe.Sizeof(o), 16}, {".result", unsafe.Offsetof(o.res), 4},
		{"ublksrv_io_desc", unsafe.Sizeof(r), 24}, {".start_sector", unsafe.Offsetof(r.start), 8},
	} {
		if x.got != x.want {
			t.Errorf("%s: %d, want %d", x.what, x.got, x.want)
		}
	}
}
