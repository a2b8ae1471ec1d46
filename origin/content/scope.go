package content

import (
	"fmt"
	"strings"
)

// Scope says who may read a root: everybody, the members of the mesh, or the
// members of one farm. Its text form is "public", "mesh" or "farm/NAME"; it is
// also the prefix under which the packs of that scope lie.
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

// Covers reports whether content of scope inner may refer to packs of scope s:
// its own or a wider one.
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
func (s Scope) MarshalCBOR() ([]byte, error) { return marshalTextString(s.String()), nil }

// UnmarshalCBOR reads the text form.
func (s *Scope) UnmarshalCBOR(b []byte) error {
	text, err := unmarshalTextString(b)
	if err != nil {
		return err
	}
	return s.UnmarshalText([]byte(text))
}
