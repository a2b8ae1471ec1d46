// Package fetch brings chunks to this node: from its cache, its farm, the swarm,
// or the origin, in the order that package plan decides. It also serves other
// members from the cache, and brings in for them what this node leads.
//
// A chunk has one flight at a time, which everyone who wants it waits for and
// which nobody's cancellation ends. Bytes are checked as they arrive, kept in the
// cache, and only then handed on.
//
// Knowing a name for something is no right to it. What is here carries how far it may
// go, its reach: as far as the widest scope under which its bytes were obtained.
// Under a root others are sent, shown, and fetched what goes as far as the root; what
// is here for less is absent for them until it was fetched for that. Flights and reads
// of the origin are apart by reach. This node's own guests read all that is here.
package fetch
