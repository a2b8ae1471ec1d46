package content

import (
	"encoding"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// Kind is what a record names.
type Kind string

// The kinds of records. Images and tags share one namespace: see Kind.Space.
const (
	KindImage      Kind = "image"
	KindTag        Kind = "tag"
	KindTree       Kind = "tree"
	KindVolume     Kind = "volume"
	KindSnapshot   Kind = "snapshot"
	KindInstance   Kind = "instance"
	KindRevocation Kind = "revocation"
	// KindLease is of what a member reads that no name may stand for any more, KindCollection of who collects the
	// origin's garbage. Members don't ask each other for these.
	KindLease      Kind = "lease"
	KindCollection Kind = "collection"
)

// Space returns the namespace that the kind's names live in.
func (k Kind) Space() Kind {
	if k == KindTag || k == KindTree {
		return KindImage
	}
	return k
}

// CheckName fails with ErrInvalid unless name is one that records of this kind
// have: a plain name, for what stands in the space of images an OCI reference too, and
// NAME@N or NAME@eN-orphan for snapshots. An unknown kind has none. In a path or key it is a Segment.
func (k Kind) CheckName(name string) error {
	switch k {
	case KindImage, KindTag, KindTree:
		return checkReference(name)
	case KindVolume, KindInstance, KindRevocation, KindLease, KindCollection:
		return CheckName(name)
	case KindSnapshot:
		_, err := ParseRef(string(KindSnapshot) + ":" + name)
		return err
	}
	return fmt.Errorf("kind %.40q of %.140q: %w: there is no such kind", string(k), name, ErrInvalid)
}

// checkReference fails with ErrInvalid unless name is plain, or an OCI reference: parts with slashes between,
// and a tag behind a colon if there is one, each of them as a plain name is.
func checkReference(name string) error {
	if n := len(Segment(name)); n > SegmentMax {
		return fmt.Errorf("name %.140q: %w: it takes %d characters in a path, and may take %d", name, ErrInvalid, n, SegmentMax)
	}
	path, tag, tagged := strings.Cut(name, ":")
	parts := strings.Split(path, "/")
	if tagged {
		parts = append(parts, tag)
	}
	if tagged && Kind(path).CheckName(tag) == nil {
		return fmt.Errorf("name %.140q: %w: it says a kind and another name; put something before it, as in library/%s", name, ErrInvalid, name)
	}
	for _, part := range parts {
		if err := CheckName(part); err != nil {
			return fmt.Errorf("%.300q: %w", name, err)
		}
	}
	return nil
}

// Segment is what a name is in a URL, a file's name or a key: percent-encoded, one segment of the path.
func Segment(name string) string { return url.QueryEscape(name) }

// NameOf returns the name of a Segment.
func NameOf(segment string) (string, error) {
	name, err := url.QueryUnescape(segment)
	if err == nil && Segment(name) != segment {
		err = errors.New("it is written in another way")
	}
	if err != nil {
		return "", fmt.Errorf("%.300q is no name: %w: %w", segment, ErrInvalid, err)
	}
	return name, nil
}

// CutKind cuts KIND:NAME; the kind is "" where there is none, as in the OCI reference debian:12.
func CutKind(text string) (Kind, string) {
	kind, name, ok := strings.Cut(text, ":")
	if k := Kind(kind); ok && k.CheckName(name) == nil {
		return k, name
	}
	return "", text
}

// CheckName fails with ErrInvalid unless name is 1 to NameMax bytes of
// [A-Za-z0-9._-] that begin with a letter or digit.
func CheckName(name string) error {
	if name == "" || len(name) > NameMax {
		return fmt.Errorf("name %.140q: %w: want 1 to %d characters, got %d", name, ErrInvalid, NameMax, len(name))
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("name %.140q: %w: want letters, digits, '.', '_' and '-', beginning with a letter or digit", name, ErrInvalid)
		}
	}
	return nil
}

// CheckFarm fails with ErrInvalid unless name is a plain one of up to FarmMax bytes.
func CheckFarm(name string) error {
	if len(name) > FarmMax {
		return fmt.Errorf("farm %.140q: %w: want up to %d characters, got %d", name, ErrInvalid, FarmMax, len(name))
	}
	return CheckName(name)
}

// Ref names content to start from: "image:NAME", "volume:NAME", "snapshot:NAME@N" or
// "snapshot:NAME@eN-orphan". A path is never a reference.
type Ref struct {
	Kind Kind
	// Name is that of the volume, for a snapshot.
	Name string
	// Seq is the number N of a snapshot; of an orphan the epoch that it was written under. Else it is 0.
	Seq uint64
	// Orphan says that it is what a holder had of a volume that was taken from it.
	Orphan bool
	// Folded asks for the last folded state of a volume: "volume:NAME?at=folded".
	Folded bool
}

const (
	foldedSuffix               = "?at=folded"
	orphanPrefix, orphanSuffix = "e", "-orphan"
)

// ParseRef reads the text form of a reference.
func ParseRef(s string) (Ref, error) {
	kind, name, ok := strings.Cut(s, ":")
	ref := Ref{Kind: Kind(kind), Name: name}
	switch {
	case !ok:
		return Ref{}, fmt.Errorf("reference %.160q: %w: want image:NAME, volume:NAME or snapshot:NAME@N", s, ErrInvalid)
	case ref.Kind == KindImage:
	case ref.Kind == KindVolume:
		ref.Name, ref.Folded = strings.CutSuffix(name, foldedSuffix)
	case ref.Kind == KindSnapshot:
		if ref.cutSnapshot(name); ref.Seq == 0 {
			return Ref{}, fmt.Errorf("reference %.160q: %w: want snapshot:NAME@N with a number N from 1", s, ErrInvalid)
		}
	default:
		return Ref{}, fmt.Errorf("reference %.160q: %w: unknown kind %.40q; want image, volume or snapshot", s, ErrInvalid, kind)
	}
	check := CheckName // of a snapshot, the volume's
	if ref.Kind == KindImage {
		check = ref.Kind.CheckName
	}
	if err := check(ref.Name); err != nil {
		return Ref{}, fmt.Errorf("reference %.160q: %w", s, err)
	}
	return ref, nil
}

// cutSnapshot sets what follows the @ of a snapshot's name, and leaves Seq 0 if that is none.
func (r *Ref) cutSnapshot(name string) {
	var which string
	r.Name, which, _ = strings.Cut(name, "@")
	if epoch, ok := strings.CutSuffix(which, orphanSuffix); ok {
		which, r.Orphan = strings.CutPrefix(epoch, orphanPrefix)
		if !r.Orphan {
			return
		}
	}
	if n, err := strconv.ParseUint(which, 10, 64); err == nil && strconv.FormatUint(n, 10) == which {
		r.Seq = n
	}
}

// RecordName is what the record of it is called: the name alone, but for a snapshot.
func (r Ref) RecordName() string {
	switch {
	case r.Kind != KindSnapshot:
		return r.Name
	case r.Orphan:
		return fmt.Sprintf("%s@%s%d%s", r.Name, orphanPrefix, r.Seq, orphanSuffix)
	}
	return fmt.Sprintf("%s@%d", r.Name, r.Seq)
}

// String returns the text form, or "" for the zero Ref.
func (r Ref) String() string {
	switch {
	case r.Kind == "":
		return ""
	case r.Folded:
		return string(r.Kind) + ":" + r.Name + foldedSuffix
	}
	return string(r.Kind) + ":" + r.RecordName()
}

// MarshalText returns the text form.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text form; empty means no reference.
func (r *Ref) UnmarshalText(b []byte) (err error) {
	*r = Ref{}
	if len(b) > 0 {
		*r, err = ParseRef(string(b))
	}
	return err
}

// MarshalCBOR writes the text form.
func (r Ref) MarshalCBOR() ([]byte, error) { return cbor.Marshal(r.String()) }

// UnmarshalCBOR reads the text form.
func (r *Ref) UnmarshalCBOR(b []byte) error { return unmarshalTextString(b, r) }

func unmarshalTextString(b []byte, to encoding.TextUnmarshaler) error {
	var s string
	if err := cbor.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return to.UnmarshalText([]byte(s))
}

// Scope says who may read a root: everybody, the members of the mesh, or the members of one farm. Its text
// form is "public", "mesh" or "farm/NAME"; it is also the prefix under which the packs of that scope lie.
type Scope struct {
	farm  string
	level uint8
}

const (
	scopePublic = iota + 1
	scopeMesh
	scopeFarm
)

// Public is readable by anyone, seeds and strangers included.
func Public() Scope { return Scope{level: scopePublic} }

// Mesh is readable by each certified member of the mesh.
func Mesh() Scope { return Scope{level: scopeMesh} }

// Farm is readable by certified members of the farm of that name.
func Farm(name string) Scope { return Scope{farm: name, level: scopeFarm} }

// ParseScope reads the text form.
func ParseScope(s string) (Scope, error) {
	switch {
	case s == "public":
		return Public(), nil
	case s == "mesh":
		return Mesh(), nil
	}
	name, ok := strings.CutPrefix(s, "farm/")
	if !ok {
		return Scope{}, fmt.Errorf("scope %.80q: %w: want public, mesh or farm/NAME", s, ErrInvalid)
	}
	if err := CheckName(name); err != nil {
		return Scope{}, fmt.Errorf("scope %.80q: %w", s, err)
	}
	return Farm(name), nil
}

// IsZero reports whether no scope was given.
func (s Scope) IsZero() bool { return s.level == 0 }

// IsPublic reports whether anyone may read.
func (s Scope) IsPublic() bool { return s.level == scopePublic }

// Farm returns the farm's name, or "" for the wider scopes.
func (s Scope) Farm() string { return s.farm }

// Covers reports whether content of scope inner may refer to packs of scope s: its own or a wider one.
func (s Scope) Covers(inner Scope) bool {
	return !s.IsZero() && !inner.IsZero() && (s == inner || s.level < inner.level)
}

// String returns the text form, or "" for no scope.
func (s Scope) String() string {
	switch s.level {
	case scopePublic:
		return "public"
	case scopeMesh:
		return "mesh"
	case scopeFarm:
		return "farm/" + s.farm
	}
	return ""
}

// MarshalText returns the text form.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the text form; empty means no scope.
func (s *Scope) UnmarshalText(b []byte) (err error) {
	*s = Scope{}
	if len(b) > 0 {
		*s, err = ParseScope(string(b))
	}
	return err
}

// MarshalCBOR writes the text form.
func (s Scope) MarshalCBOR() ([]byte, error) { return cbor.Marshal(s.String()) }

// UnmarshalCBOR reads the text form.
func (s *Scope) UnmarshalCBOR(b []byte) error { return unmarshalTextString(b, s) }
