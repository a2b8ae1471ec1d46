// Package oci is the door for container runtimes: a registry on this host, by the OCI
// distribution protocol, that brings in what other registries have and keeps it in the mesh.
//
// What it holds is blobs, by their SHA-256, in files of this node, up to a quota. A blob that is
// not here comes in one flight, whoever asks: from the tree of its image, from the member of the
// farm that has it or is at it, or from the registry. One member of the farm at a time is given
// the right to ask the registry for a blob, by the lead of its digest; the others read from that
// one what has come already. So a registry serves each blob once a farm, and credentials never
// leave the node that was shown them. When that member dies the lead gives the right to the next
// who asks, who goes on where its own copy ends. A blob is handed to clients but for its end until
// all of it has been checked, and a part from its middle not before.
//
// An image is published as a tree of files in OCI layout, named by its reference: what already
// publishes, shares, warms, follows, checks and removes trees does so with images, and others read
// what `grange tree export` writes. It has what was asked for and no other platforms, and is of scope mesh:
// what not everybody may read is never published, and stays in the nodes' own files. A member that may
// publish does it, first the one that rendezvous picks for the name, and asks the registry itself.
//
// Who may read what: of a registry's repository what the registry lets the same credential read, asked
// anew after a minute; while it is away what it let everybody read, or this credential within a day. A
// blob is one of the repository that it is asked of, or absent: knowing a digest is no right to it, and
// what is not everybody's is kept apart for each repository, so that another one, of whose manifests one
// may write oneself, does not lead to it. What an operator has imported as such a tree is for all who
// reach the door, which is on loopback alone.
//
// Who shows the node's token pushes images of the mesh's own, where the node may publish: a blob is checked against its
// digest and waits for a manifest; a manifest that has all that it names here is published as a tree before it is
// answered. What a repository of the mesh's own has is what its trees have now.
package oci
