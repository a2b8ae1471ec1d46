// Package exchange moves chunks, map nodes and small calls between members over
// a libp2p host that is given to it.
//
// A member asks another for objects by (root, level, index), never by CID, so
// that the other can check the root's scope before it looks. What comes back is
// untrusted: the caller verifies it.
package exchange
