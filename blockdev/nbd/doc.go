// Package nbd is the network door to block devices: an NBD server on unix
// sockets and TCP that any NBD client can open, qemu and the kernel among them.
//
// It speaks fixed newstyle with structured replies and the base:allocation
// context, so holes stay holes on the way to the client. All connections may be
// used for one device at once (multi-conn): the device is shared and its Flush
// covers every write that was answered, whichever connection it came by.
//
// # A connection
//
// One goroutine reads requests, as many as one read of the socket brings, and
// answers at once what the device has at hand ([blockdev.Prompt]). What may wait
// gets a goroutine of its own, so a slow request stalls only itself. Replies that
// are ready together leave in one write, and nobody waits for the client to take
// them but one goroutine that exists only while the socket is full. An idle
// connection holds no buffer; a busy one at most BytesMax. Nothing is allocated
// per request.
//
// # Requests and replies
//
// All numbers are big-endian. A request, 28 bytes, a write's data behind it:
//
//	offset  size
//	     0     4  magic 0x25609513
//	     4     2  flags
//	     6     2  command
//	     8     8  cookie: returned in each reply
//	    16     8  offset in the device
//	    24     4  length
//
// A simple reply, 16 bytes, a read's data behind it:
//
//	0     4  magic 0x67446698
//	4     4  error, 0 = none
//	8     8  cookie
//
// A chunk of a structured reply, 20 bytes, its payload behind it:
//
//	 0     4  magic 0x668e33ef
//	 4     2  flags: 1 = the last chunk of this reply
//	 6     2  type: 0 none, 1 data, 2 hole, 5 block status, 0x8001 error
//	 8     8  cookie
//	16     4  length of the payload
//
// A unix socket is guarded by its mode; over TCP clients use TLS and show a
// certificate, where Config.TLS says so: then a connection holds a buffer while it is
// idle too, and its replies are written by a goroutine.
package nbd
