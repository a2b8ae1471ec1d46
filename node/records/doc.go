// Package records is the one owner of what this node knows of names: what the origin
// said, what members say beyond that, and how far either is believed. It looks names
// up (memory, origin, members, disk), writes them, and answers others. Content, its
// bytes and who gets them are other packages' affair.
//
// Two things may be known of a name at once. What the origin said to this node stands
// until the origin says another thing. What members say is heard beside it: it may be
// the answer while the origin is away, and it never moves what the origin said.
package records
