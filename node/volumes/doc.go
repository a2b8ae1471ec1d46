// Package volumes holds the volumes that are attached to this node: which they
// are, over a restart too; whose they are, by their records; and the doors that
// they are served through.
//
// A volume is created in steps that a crash may fall between. The device map
// names it first, then its folder is made, then its record is committed, then it
// is served. A restart finishes or undoes what it finds half done, by the same
// steps.
package volumes
