// Package nbd is the network door to block devices: an NBD server on unix
// sockets and TCP that any NBD client can open, qemu and the kernel among them.
//
// It speaks fixed newstyle with structured replies and the base:allocation context, so holes stay holes on the way to
// the client. What was written since snapshot N of a device ([blockdev.History]) is the context qemu:dirty-bitmap:N, as
// qemu and the backup tools around it read it. All connections may be used for one device at once (multi-conn): the
// device is shared and its Flush covers every write that was answered, whichever connection it came by.
//
// # A connection
//
// One goroutine reads requests, as many as one read of the socket brings, and answers at once what the device has at
// hand ([blockdev.Device]). What may wait gets a goroutine of its own, so a slow request stalls only itself. Replies
// that are ready together leave in one write, and nobody waits for the client to take them but one goroutine that
// exists only while the socket is full. An idle connection holds no buffer; a busy one at most BytesMax. Nothing is
// allocated per request.
//
// A unix socket is guarded by its mode; over TCP clients use TLS and show a certificate, where Config.TLS says so: then
// a connection holds a buffer while it is idle too, and its replies are written by a goroutine.
package nbd
