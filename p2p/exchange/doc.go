// Package exchange moves chunks, map nodes and small calls between members over
// a libp2p host that is given to it. Package wire has the frames.
//
// A member asks another for objects by (root, level, index), never by CID, so
// that the other can check the root's scope before it looks. What comes back is
// untrusted: the caller verifies it.
//
// # What waits for what
//
// A member keeps a stream a lane open to each peer that it asks: control for calls
// and bitmaps, urgent for what a guest is blocked on, journal for what its volumes have
// written, bulk for the rest. So a fault or a flush never waits in a stream behind a prefetch. It still shares the connection,
// therefore the sender bounds the bulk under way by what it measures: as much as
// the link carries in its round trip and 5 ms, two chunks at least. The receiver
// acknowledges data when the sender asks for that; from it the sender knows rate
// and round trip. Bodies are compressed for links slower than the compressor.
//
// The sender reads an object only when its request has a turn. Turns go by
// priority, then in turn among peers, and only to peers whose link has room; guests
// have turns of their own. So under load the work goes where it is waited for, and
// a peer that does not read holds nobody up.
//
// A request that shows no sign of progress for StallTimeout has failed. Signs are
// its own replies, of which a server sends one each ProgressInterval while it makes
// somebody wait; a frame that is long on its way excuses what waits behind it.
//
// # Who asks, and who is asked
//
// Each stream begins with a hello of either end, which shows its certificate chain. A
// peer that has shown a good one, asking or asked, has proved who it is for all its
// streams (package identity), until a check once a minute, or after a revocation,
// finds it bad: then its streams end. Who has not is asked nothing. When it asks it is
// a stranger: small budgets, few frames a second, the lowest priority, a quarter of
// the turns and a rate of bytes for all of them, and an empty Identity, which may read
// public content only. One that wants nothing loses its streams, and when there are
// too many of them the one that was silent longest goes.
//
// What a peer makes us keep is bounded by what it has sent: a frame's memory grows as
// it comes, and its streams end when it does not.
package exchange
