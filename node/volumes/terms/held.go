package terms

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// HeldError says that another has a volume, and what whoever wants it has to know to
// decide. It is [content.Held].
type HeldError struct {
	// Holder is the node that has it, as people call it, with its ID.
	Holder string
	// Policy is what a flush of the volume means there.
	Policy string
	// FoldedAt is when the bucket last got all that was written; zero when it never has.
	FoldedAt time.Time
	// Text is what to do.
	Text string
}

func (e *HeldError) Error() string { return content.Held.Error() + ": " + e.Text }

// Unwrap says what kind of error it is.
func (e *HeldError) Unwrap() error { return content.Held }

// Holding says that a node has a name, and by which record.
func Holding(who string, r catalog.Record, body catalog.Volume) string {
	of := r.SignedAt.UTC().Format(time.RFC3339)
	if body.State == catalog.Released {
		return fmt.Sprintf("%s has released it on %s: `grange volume attach %s` on any node of farm %s serves it", who, of, r.Name, r.Farm)
	}
	return fmt.Sprintf("%s has it, with durability %s, as its record of %s says, and the bucket has what was written until %s", who, body.Policy, of, MomentOr(body.FoldedAt, "it was made"))
}

// WaysOut says what to do about a name that another node has.
func WaysOut(away bool, r catalog.Record) string {
	if !away {
		return fmt.Sprintf("ask that node, or choose another name; `grange volume move %s NODE` there lets another node of farm %s have it", r.Name, r.Farm)
	}
	return fmt.Sprintf("start that node, or choose another name; or `grange volume attach %s --takeover` on a node of farm %s goes on without it, and what that node alone has stays there as a snapshot; if it is gone for good, `grange volume rm %[1]s --force` there frees the name", r.Name, r.Farm)
}

// MomentOr is a time for people, or what stands for none.
func MomentOr(t time.Time, none string) string {
	if t.IsZero() {
		return none
	}
	return t.UTC().Format(time.RFC3339)
}

// Older says what is wrong with a volume of this node whose record knows a later state.
func Older(r catalog.Record, body catalog.Volume) string {
	return fmt.Sprintf("this node has served a later state of it, epoch %d, as its record of %s says, and this is an older copy: restore the latest, or `grange volume attach %s --takeover` goes on with what the bucket or its holders have", body.Epoch, r.SignedAt.UTC().Format(time.RFC3339), r.Name)
}

// Missing says what is wrong with a volume that is this node's by its record alone. Its
// folder can't be read, where it is there at all.
func Missing(folder string, there bool, r catalog.Record) string {
	wrong := "is not there: mount the disk that has it, or restore it from a backup"
	if there {
		wrong = "can't be read, or is a volume of another name, as `grange volume ls` says: mend that"
	}
	return fmt.Sprintf("this node has had it since %s, and its folder %s %s, and start the node again; if it is gone for good, `grange volume attach %s --takeover` goes on with what the bucket or its holders have, and `grange volume rm %[4]s --force` frees the name",
		r.SignedAt.UTC().Format(time.RFC3339), folder, wrong, r.Name)
}

// Stale says that a request comes too late.
func Stale(seen, asked uint64) error {
	return fmt.Errorf("%w: a request of generation %d was here, and this one has %d", content.Stale, seen, asked)
}

// Outdated says that a disk is an older copy where its journal ends before the entry up to which the bucket has
// the volume; empty where it does not.
func Outdated(name string, end, through uint64) string {
	if end >= through {
		return ""
	}
	return fmt.Sprintf("its disk ends with entry %d, and the bucket has it up to %d: the disk is an older copy, and `grange volume attach %s --takeover` goes on with what the bucket has", end, through, name)
}
