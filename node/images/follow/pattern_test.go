package follow

import (
	"errors"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func TestPatterns(t *testing.T) {
	for text, names := range map[string]map[string]bool{
		"image:debian":    {"image debian": true, "tag debian": false, "image debian-12": false},
		"tag:latest":      {"tag latest": true, "image latest": false},
		"debian":          {"image debian": true, "tag debian": true},
		"tag:debian-*":    {"tag debian-": true, "tag debian-12": true, "image debian-12": false, "tag debian": false},
		"library/*":       {"image library/a/b:1": true, "image other/a": false},
		"library/*:1[23]": {"image library/debian:12": true, "image library/debian:11": false},
		"*":               {"image a": true, "tag a/b": true},
		"d?bian":          {"image debian": true, "image d/bian": true, "image dbian": false},
		"image:lib/x:1":   {"image lib/x:1": true},
	} {
		var p Pattern
		if err := p.UnmarshalText([]byte(text)); err != nil || p.String() != text {
			t.Errorf("%s: %v, %v", text, p, err)
		}
		for of, want := range names {
			kind, name := content.Kind("image"), of[len("image "):]
			if of[:4] == "tag " {
				kind, name = "tag", of[4:]
			}
			if p.Match(kind, name) != want {
				t.Errorf("%s matches %s: %t", text, of, !want)
			}
		}
	}
	for _, text := range []string{"", "image:", "tag:", "volume:web1", "snapshot:a@1", "a b", "image:-x", "x[", "*[z-a", `a\*`, "tag:image:a"} {
		var p Pattern
		if err := p.UnmarshalText([]byte(text)); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v, %v", text, p, err)
		}
	}
}
