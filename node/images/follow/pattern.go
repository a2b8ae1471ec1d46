package follow

import (
	"fmt"
	"path"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// PatternsMax bounds the patterns of a node: each is looked for by itself.
const PatternsMax = 64

// Pattern says which names are followed: one, or all that match.
//
//	NAME, image:NAME, tag:NAME   that name, of an image, of a tag, or of either
//	a NAME with *, ? or [a-z]    all such names: * is any number of any characters
type Pattern struct {
	// Kind is of the names, "" for both.
	Kind content.Kind `cbor:"kind"`
	// Glob is the name, or what names look like.
	Glob string `cbor:"glob"`
}

// wild are the characters that make a name a pattern.
const wild = `*?[`

// UnmarshalText reads the text form. An error says what to write.
func (p *Pattern) UnmarshalText(b []byte) error {
	text := string(b)
	*p = Pattern{Glob: text}
	for _, kind := range []content.Kind{content.KindImage, content.KindTag, content.KindTree} {
		if glob, ok := strings.CutPrefix(text, string(kind)+":"); ok {
			*p = Pattern{kind, glob}
		}
	}
	return p.Check()
}

// Check fails with ErrInvalid unless a name can match.
func (p Pattern) Check() error {
	switch {
	case p.Kind != "" && p.Kind.Space() != content.KindImage || strings.HasPrefix(p.Glob, "volume:") || strings.HasPrefix(p.Glob, "snapshot:"):
		return fmt.Errorf("%.140q: %w: want NAME, image:NAME, tag:TAG, tree:NAME, or a pattern of names as debian-*", p, content.ErrInvalid)
	case p.Wild():
		if _, err := path.Match(p.Glob, ""); err != nil || strings.Contains(p.Glob, `\`) || len(p.Glob) > content.SegmentMax {
			return fmt.Errorf("%.140q: %w: it is no pattern: * stands for any characters, ? for one, [a-z] for one of those", p, content.ErrInvalid)
		}
	default:
		return content.KindImage.CheckName(p.Glob)
	}
	return nil
}

// String is the text form.
func (p Pattern) String() string {
	if p.Kind == "" {
		return p.Glob
	}
	return string(p.Kind) + ":" + p.Glob
}

// Wild reports whether more than one name may match.
func (p Pattern) Wild() bool { return strings.ContainsAny(p.Glob, wild) }

// Begin is what all names that match begin with.
func (p Pattern) Begin() string {
	if i := strings.IndexAny(p.Glob, wild); i >= 0 {
		return p.Glob[:i]
	}
	return p.Glob
}

// Match reports whether a name is followed. A slash is a character as any other.
func (p Pattern) Match(kind content.Kind, name string) bool {
	flat := func(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
	ok, err := path.Match(flat(p.Glob), flat(name))
	return err == nil && ok && (p.Kind == "" || p.Kind == kind)
}
