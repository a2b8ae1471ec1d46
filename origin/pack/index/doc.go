// Package index is what importers look up: which objects lie where in the packs of a
// bucket, as far as that may be believed. A pack is believed on the word of a member
// that may write its scope (trust.Verifier.OpenPack); of any other, what is asked for
// is read and hashed first. Whoever can merely write to the bucket makes nobody
// refer to what is not there.
package index
