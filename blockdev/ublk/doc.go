// Package ublk serves devices as /dev/ublkbN, block devices of the Linux kernel
// whose requests are answered here, over io_uring and without C.
//
// The kernel hands requests out by queue. Each queue belongs to one of a few
// threads, and a thread serves queues of many devices from one ring, in which it
// sleeps as long as none has work. What a device can answer at once is answered
// on that thread; what must wait is waited for on a goroutine of its own, so that
// a slow chunk holds up its own request and no other. The data of a request stays
// with the kernel, and is copied from and to where the device has it
// ([blockdev.Device]).
//
// Devices outlive their server. When it ends, in whatever way, the kernel keeps
// them and their requests; the next server with the same Owner takes them up by
// Add with their number, and who uses them sees a pause. A request that was being
// answered is then given out again, so it may reach the device twice.
//
// The kernel goes back from the middle of a recovery at two moments alone. A server
// that is killed between them, milliseconds of its start, leaves a disk that its
// next server makes anew: its users get errors. And while it makes a disk the kernel
// looks for partitions: a server that is killed then, while somebody else reads that
// place already, does not end before the machine does.
//
// Needed are a kernel with user recovery and io_uring's deferred task work, 6.5
// and later, the module ublk_drv, and the right to administer it (CAP_SYS_ADMIN,
// and access to /dev/ublk-control and /dev/ublkc*). The module's parameter ublks_max
// bounds the devices, of all users in some kernels. Processors are little-endian, of 64 bits.
package ublk
