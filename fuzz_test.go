package grange_test

import (
	"go/ast"
	"maps"
	"regexp"
	"strings"
	"testing"
)

// wired are the wings whose bytes come from others: members, strangers, buckets, guests.
func wired(dir string) bool {
	return under(dir, "p2p") || under(dir, "blockdev/nbd") || nouns(dir) || under(dir, "origin/catalog") || under(dir, "origin/pack")
}

// TestDecodersAreFuzzed: what reads bytes of others is reached from a Fuzz function of its
// package. .ci/fuzz runs all of them.
func TestDecodersAreFuzzed(t *testing.T) {
	decoder := regexp.MustCompile(`^([dD]ecode|[pP]arse|[oO]pen)`)
	uses, fuzzed, decoders := map[string]map[string]bool{}, map[string]bool{}, map[string]string{}
	for _, s := range sources(t) {
		for _, d := range s.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil || !wired(s.dir()) {
				continue
			}
			name := s.dir() + " " + f.Name.Name
			if uses[name] == nil {
				uses[name] = map[string]bool{}
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					uses[name][s.dir()+" "+id.Name] = true
				}
				return true
			})
			switch {
			case s.test() && strings.HasPrefix(f.Name.Name, "Fuzz"):
				fuzzed[name] = true
			case !s.test() && decoder.MatchString(f.Name.Name) && takesBytes(f):
				decoders[name] = s.line(f.Pos())
			}
		}
	}
	for more := true; more; {
		before := len(fuzzed)
		for name := range maps.Clone(fuzzed) {
			maps.Copy(fuzzed, uses[name])
		}
		more = len(fuzzed) > before
	}
	for name, at := range decoders {
		if !fuzzed[name] {
			t.Errorf("%s: no Fuzz function reaches %s", at, name)
		}
	}
	if len(decoders) < 20 {
		t.Errorf("only %d decoders were looked at", len(decoders))
	}
}

// takesBytes reports whether one of the parameters is bytes.
func takesBytes(f *ast.FuncDecl) bool {
	for _, p := range f.Type.Params.List {
		if a, ok := p.Type.(*ast.ArrayType); ok {
			if of, ok := a.Elt.(*ast.Ident); ok && of.Name == "byte" {
				return true
			}
		}
	}
	return false
}
