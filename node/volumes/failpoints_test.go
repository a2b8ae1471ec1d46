package volumes

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// tested are the folders whose failpoints are told to Config.At, and what they are called
// there; all others that have some have a test of their own that ends them at each.
func tested() map[string]string {
	return map[string]string{"fold": "fold ", "index": "index ", "../../blockdev/volume": "", "../../blockdev/volume/journal": ""}
}

// failpoints are the steps that the code has, as Config.At is told of them. One that only
// reads leaves nothing behind.
func failpoints(t testing.TB) (out []string) {
	t.Helper()
	for dir, prefix := range tested() {
		for _, name := range failpointsIn(t, dir) {
			if name != "read" && name != "reused" { // files of full segments alone are: TestLife of blockdev/volume ends there
				out = append(out, prefix+name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func failpointsIn(t testing.TB, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if name := failpoint(n); name != "" {
				out = append(out, name)
			}
			return true
		})
	}
	return out
}

// failpoint is the step that a constant, or a call, is.
func failpoint(n ast.Node) string {
	var text ast.Expr
	switch n := n.(type) {
	case *ast.ValueSpec:
		if len(n.Names) == 1 && strings.HasPrefix(strings.ToLower(n.Names[0].Name), "step") && len(n.Values) == 1 {
			text = n.Values[0]
		}
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Step" && len(n.Args) == 1 {
			text = n.Args[0]
		}
	}
	if lit, ok := text.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		name, _ := strconv.Unquote(lit.Value)
		return name
	}
	return ""
}

// TestEachPackageWithFailpointsIsTested: whoever adds a failpoint in another package of
// volumes has it here, or has a test there that finds all of them in the code, as this one.
func TestEachPackageWithFailpointsIsTested(t *testing.T) {
	for _, root := range []string{".", "../../blockdev/volume"} {
		err := filepath.WalkDir(root, func(dir string, e os.DirEntry, err error) error {
			if err != nil || !e.IsDir() || len(failpointsIn(t, dir)) == 0 {
				return err
			}
			if _, here := tested()[dir]; here {
				return nil
			}
			tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
			for _, path := range tests {
				if b, _ := os.ReadFile(path); strings.Contains(string(b), "parser.ParseFile(") && strings.Contains(string(b), "func TestCrashAtEachStep(") {
					return nil
				}
			}
			t.Errorf("%s has failpoints, and no test that crashes at each", dir)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// script is what a volume and its fork go through on two nodes, of which one is killed.
type script struct {
	*book
	t *testing.T
}

// do has a member do something until that is done, after which the volume is to be next, if
// that is not nil.
func (s *script) do(m *member, what, name string, next *state, do func() error) {
	s.t.Helper()
	for range 5 {
		v := s.at(m, name)
		if v != nil {
			if p := v.places[m]; p != nil && next != nil {
				p.maybe = []*state{next}
			}
			if v.owner != nil {
				v.naming = v.owner.now
			}
		}
		err := do()
		died := m.cable.isDead()
		if died {
			s.kills++
			m.again()
			m.openAll(context.Background())
			(&model{book: s.book}).tendTo(m)
		} else if err != nil {
			s.t.Fatalf("%s at %s: %v", what, m, err)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if err := s.check(); err != nil {
			s.t.Fatalf("%s at %s, killed: %t: %v", what, m, died, err)
		}
		if !died {
			return
		}
	}
	s.t.Fatalf("%s is never done", what)
}

// at is the volume of a name that a member has; nil if it has none.
func (s *script) at(m *member, name string) *modelVolume {
	e, _ := m.index.Get(name)
	return s.byID[e.ID]
}

// write writes n times, each time in a segment of its own.
func (s *script) write(m *member, name string, n int) {
	s.t.Helper()
	for range n {
		v := s.at(m, name)
		s.word++
		word := 1<<60 | s.word
		at := int(s.word) % 4 * 100
		s.do(m, "write", name, &state{v.owner.now, v.owner.now.disk.with(at, 4, word)}, func() error {
			vol := m.device(name).vol
			err := vol.WriteAt(context.Background(), bytesOf(4, word), int64(at)*modelSector, false)
			if err == nil {
				var p content.Position
				p, err = vol.Seal(context.Background())
				vol.Release(p)
			}
			return err
		})
	}
}

// TestACrashAtEachFailpoint kills a node at each step that the code has, by the name that it
// has there, in a volume's life from its making to its end: over folds, compaction, a
// snapshot, a fork, a rollback, a move, a takeover and back. A step that nothing comes by has
// no test.
func TestACrashAtEachFailpoint(t *testing.T) {
	for _, step := range failpoints(t) {
		t.Run(step, func(t *testing.T) {
			for nth := range soak.Of(2, 12) {
				kills := 0
				synctest.Test(t, func(t *testing.T) { kills = liveThrough(t, fate{killedAt, step, nth}) })
				if nth == 0 && kills == 0 {
					t.Error("nothing comes by: it has no test")
				}
			}
		})
	}
}

func liveThrough(t *testing.T, f fate) (kills int) {
	farm := newFarm(t)
	defer farm.close()
	s := &script{newBook(farm), t}
	a, b := farm.nodes()[0], farm.nodes()[1]
	a.cable.befall(f)
	b.cable.befall(f)
	put := func(m *member, name string, spec Spec) {
		spec.Transport = terms.NBD
		s.do(m, fmt.Sprintf("put %+v", spec), name, nil, func() error { _, _, err := m.Put(t.Context(), name, spec); return err })
	}
	image, _ := content.ParseRef("image:debian")
	s.making["disk"] = &modelVolume{name: "disk", born: []*state{{disk: imageDisk()}}, places: map[*member]*place{}, snaps: map[uint64]*modelSnap{}}
	put(a, "disk", Spec{Size: modelSize, From: image})
	v := s.at(a, "disk")
	folds := func(m *member, want fold.Want) {
		s.do(m, "fold", "disk", nil, func() error { return m.device("disk").folds.Run(t.Context(), want) })
	}
	s.write(a, "disk", 3)
	var snapshot string // the number of one that was killed may be gone
	s.do(a, "snapshot", "disk", nil, func() error {
		view, err := a.Snapshot(t.Context(), "disk", SnapshotSpec{})
		snapshot = view.ID
		return err
	})
	was := v.owner.now
	s.write(a, "disk", 1)
	folds(a, fold.Safe)
	s.write(a, "disk", 40)
	s.making["fork"] = &modelVolume{name: "fork", promised: v.folded, born: v.owner.may(), places: map[*member]*place{}, snaps: map[uint64]*modelSnap{}}
	from, _ := content.ParseRef("volume:disk")
	put(a, "fork", Spec{From: from})
	folds(a, fold.Chunks)
	s.write(a, "disk", 2)
	v.rolling = []*state{{v.owner.now, was.disk}}
	s.do(a, "rollback", "disk", nil, func() error {
		v.rolling = []*state{{v.owner.now, was.disk}}
		_, err := a.Rollback(t.Context(), "disk", snapshot)
		return err
	})
	s.write(a, "disk", 2)
	s.do(a, "detach", "disk", nil, func() error { _, err := a.Detach(t.Context(), "disk", false); return err })
	put(b, "disk", Spec{})
	s.write(b, "disk", 2)
	put(a, "disk", Spec{Takeover: true})
	s.do(b, "look", "disk", nil, func() error { (&model{book: s.book}).tendTo(b); return nil })
	s.write(a, "disk", 2)
	put(b, "disk", Spec{Takeover: true})
	for _, v := range s.byID {
		v.going = true
	}
	s.do(a, "remove", "fork", nil, func() error { return a.Remove(t.Context(), "fork", RemoveSpec{}) })
	s.do(b, "remove", "disk", nil, func() error { return b.Remove(t.Context(), "disk", RemoveSpec{}) })
	return s.kills
}
