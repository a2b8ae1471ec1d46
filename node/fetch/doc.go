// Package fetch brings chunks to this node: from its cache, its farm, the swarm,
// or the origin, in the order that package plan decides. It also serves other
// members from the cache, and brings in for them what this node leads.
//
// A chunk has one flight at a time, which everyone who wants it waits for and
// which nobody's cancellation ends. Bytes are checked as they arrive, kept in the
// cache, and only then handed on.
package fetch
