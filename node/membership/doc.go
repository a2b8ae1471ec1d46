// Package membership is what a member knows of its mesh: its own certificate and
// secrets, who else belongs to it, and who does no more. It joins and founds, lets
// others join, and has news spread: each member passes on what is new to it at once,
// and two that meet compare what they know.
//
// What lies in the data folder is the truth at each moment: a change is on disk
// before anything acts on it, so that a member that is killed goes on from either side
// of the change.
//
//	identity.key   this member's key
//	mesh.key       the mesh key, where it was founded or brought
//	membership     mesh, certificate, secrets, origin, bootstrap addresses
//	invites/       tokens that were made here
//	revoked/       a file for each key that was revoked, with the time of learning
//	roll           the members that were met, with their certificates
//
// It does not know volumes, images or records other than revocations.
package membership
