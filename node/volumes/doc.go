// Package volumes holds the volumes that are attached to this node: which they are, over a restart
// too; whose they are, by their records; and the doors that they are served through.
//
// All that the node knows of a volume lies in the volume's own folder, beside its journal, in
// volume.json. The folder gets its name when the record is committed and the volume whole, and
// loses it before anything in it is removed, so that a crash leaves a volume or none; the next
// start goes on where it came.
package volumes
