// Package build turns chunks into packs: a Builder stores what is new, refers to
// what stands, and ends the last pack with the map, root and manifest above it.
package build
