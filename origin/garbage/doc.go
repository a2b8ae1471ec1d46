// Package garbage gives space at an origin back, and looks after what is there. Nothing that a record names is ever
// deleted, whoever commits meanwhile, however long anybody sleeps, and whatever the clocks of nodes say.
//
// A collection ([Run]) marks what records name: packs by the manifests of their roots, segments of journals by the records
// themselves. What is not marked is written into a [Batch] of tombstones, an object of its own; and when the grace is
// over, a later run marks again, and deletes what is dead still:
//
//	marked at the origin ──► tombstone ──► grace ──► marked again ──► condemned ──► deleted
//	                            │ a commit names it      │ a record names it
//	                            └────────► alive ◄───────┘
//
// Every change of a batch is a conditional put, so that of a committer who takes a pack out ([Secure]) and a collection
// that condemns it, one wins and the other is told. A committer therefore needs no clock: what it names, once its record
// is written, is safe where no batch has it, as each batch that is written later is followed by another mark, which reads
// that record; it takes out what a batch has; and what is condemned already, or gone, it writes anew and commits again
// before it reports success. Only what the record that it replaces has named, and what it has itself put within [SureFor]
// of its commit, by the store's own clock, needs no such look: a mark sees one or the other record of a name, and a grace is
// far longer than that. What other records name does need it, as a mark is not of one moment: it can miss a name that is
// given and one that is taken away.
//
// A condemned key is never alive again: keys have random names, or order the journal of one volume and are never freed
// while that lives. So a collection that sleeps before it deletes does no harm when it wakes.
//
// Packs of which little is alive are written anew in the same way (repack): theirs is a tombstone that says so, the frames
// that live are put into another pack, and the old name is left to a stub that says which.
//
// All that can't be understood ends a run before it deletes anything: a list that fails, a key, kind, format or version
// that is not known here, a store whose clock or lists contradict themselves. A single record or manifest that is damaged
// is reported, and nothing that it may name is deleted.
package garbage
