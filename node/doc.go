// Package node is one member of a mesh: it joins the three wings. It keeps the
// member's identity, resolves names, imports images, and holds the volumes that
// are attached here. Programs that choose implementations (cmd/grange, the
// simulations) build one with New and call Run.
package node
