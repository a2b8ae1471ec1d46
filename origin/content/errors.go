package content

import (
	"errors"
	"fmt"
	"strings"
)

// The categories of failure that callers act on. Packages wrap them with what
// they were doing and to which name; test with errors.Is.
var (
	// ErrNotFound: nothing is there under that name or CID.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken by something else.
	ErrExists = errors.New("already exists")
	// ErrConflict: the request contradicts the present state; read it and decide.
	ErrConflict = errors.New("conflict")
	// ErrFenced: another node or epoch owns the volume; this holder must stop.
	ErrFenced = errors.New("taken away")
	// ErrCorrupt: bytes do not match their name, checksum or format.
	ErrCorrupt = errors.New("corrupt")
	// ErrUnknown: it is ErrCorrupt as far as this version can tell, and says itself that a later one has written it.
	ErrUnknown = fmt.Errorf("of a version that is not known here: %w", ErrCorrupt)
	// ErrUnavailable: no source answered; the same call may succeed later.
	ErrUnavailable = errors.New("unavailable")
	// ErrForbidden: the certificate or scope does not allow it.
	ErrForbidden = errors.New("forbidden")
	// ErrInvalid: the input can never be accepted as it stands.
	ErrInvalid = errors.New("invalid")
	// ErrReadOnly: the target takes no writes.
	ErrReadOnly = errors.New("read-only")
	// ErrNoSpace: the disk or quota is full.
	ErrNoSpace = errors.New("no space left")
	// ErrClosed: the object was closed.
	ErrClosed = errors.New("closed")
)

// IsDamage reports whether an error is of one object, and says that it is not there, is not what it should be, or may not be
// where it is: who asks the same again is told the same.
func IsDamage(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrInvalid)
}

// Conflict is an [ErrConflict] of a known kind, in a word that programs can act on.
type Conflict string

// The kinds of conflict.
const (
	// InUse: someone has it open; end that, or force it.
	InUse Conflict = "in_use"
	// Held: another member holds it.
	Held Conflict = "held"
	// Differs: it is there already, made otherwise than is asked for now.
	Differs Conflict = "differs"
	// Attached: it is served in another way; detach it first.
	Attached Conflict = "attached"
	// Running: an operation is at it.
	Running Conflict = "running"
	// OtherKind: the name is one of something else.
	OtherKind Conflict = "other_kind"
	// Used: it has served its purpose, which can't be taken back.
	Used Conflict = "used"
	// Ambiguous: several are called so.
	Ambiguous Conflict = "ambiguous"
	// Stale: a later request was there before.
	Stale Conflict = "stale"
	// Gone: what it names is not at the origin any more.
	Gone Conflict = "gone"
	// OtherMesh: it belongs to another mesh.
	OtherMesh Conflict = "other_mesh"
)

// Error implements error.
func (Conflict) Error() string { return ErrConflict.Error() }

// Is says that each kind is an ErrConflict.
func (Conflict) Is(err error) bool { return err == ErrConflict }

// Line is the text of an error on one line: those of errors.Join, and of libraries that
// list errors, stand on lines of their own, and are parted by semicolons here.
func Line(err error) string {
	var out strings.Builder
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "* ")
		switch said := out.String(); {
		case line == "" || said == "":
		case strings.HasSuffix(said, ":"):
			out.WriteByte(' ')
		default:
			out.WriteString("; ")
		}
		out.WriteString(line)
	}
	return out.String()
}
