package roots

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// known is a root as tests have it.
type known struct{ name Name }

func (k *known) Name() Name { return k.name }

func named(n int, scope content.Scope, page byte, by peer.ID) *known {
	head := pack.Head{Scope: scope}
	head.Page.CID = content.Sum([]byte{page})
	return &known{Name{content.Sum([]byte(fmt.Sprint(n))), head, by}}
}

func at(second int) time.Time { return time.Unix(int64(second), 0) }

func alike(*known) int { return 0 }

// TestLearnedLongUnusedAreForgotten makes room without losing what is in use.
func TestLearnedLongUnusedAreForgotten(t *testing.T) {
	s := New[*known]()
	for i := range 2 * learnedForgotten {
		s.Learn(named(i, content.Mesh(), 0, ""), at(i))
	}
	s.Best(named(0, content.Mesh(), 0, "").name.ID, at(3600), alike)
	s.forget()
	for i := range 2 * learnedForgotten {
		if _, ok := s.Best(named(i, content.Mesh(), 0, "").name.ID, at(0), alike); ok == (i == 1 || i == 2) {
			t.Errorf("root %d: known is %t", i, ok)
		}
	}
}

// TestALookReplacesAWord: what was introduced with the same scope goes, of another scope
// it stays. Who shows another record again has it beside the one that was looked up.
func TestALookReplacesAWord(t *testing.T) {
	s := New[*known]()
	id := named(1, content.Mesh(), 0, "").name.ID
	s.Introduce(named(1, content.Mesh(), 1, "liar"), at(0))
	s.Introduce(named(1, content.Public(), 1, "liar"), at(0))
	right := s.Learn(named(1, content.Mesh(), 2, ""), at(1))
	if heads := slices.Collect(s.Of(id)); len(heads) != 2 || heads[1] != right || heads[0].name.Head.Scope != content.Public() {
		t.Errorf("heads: %v", heads)
	}
	if got := s.Introduce(named(1, content.Mesh(), 2, "liar"), at(2)); got != right {
		t.Error("a record that was looked up and is introduced has two states")
	}
	other := named(1, content.Mesh(), 3, "liar")
	if got := s.Introduce(other, at(2)); got != other || s.Introduce(named(1, content.Mesh(), 3, "another"), at(2)) != other {
		t.Error("a record that two introduce has not one state")
	}
	if again := s.Learn(named(1, content.Mesh(), 2, ""), at(3)); again != right {
		t.Error("one head has two states")
	}
	if ended := s.End(id, content.Mesh()); len(ended) != 1 || ended[0] != right {
		t.Errorf("ended: %v", ended)
	}
}

// TestBounds: whatever members introduce, there are never more than so many of each
// and of all, and every root that was looked up is there still.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New[*known]()
		s.Learn(named(-1, content.Farm("a"), 0, ""), at(0))
		n := 0
		for range rapid.IntRange(1, 30).Draw(t, "bursts") {
			by := peer.ID(fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "member")))
			for range rapid.IntRange(1, 700).Draw(t, "roots") {
				root := named(n, content.Mesh(), 0, by)
				s.Introduce(root, at(n))
				if got := slices.Collect(s.Of(root.name.ID)); len(got) != 1 || got[0] != root {
					t.Fatalf("root %d is not known", n)
				}
				n++
			}
			total := 0
			for by, list := range s.from {
				total += len(list)
				if len(list) > introducedEach || len(list) == 0 {
					t.Fatalf("%d roots of %s", len(list), by)
				}
			}
			if total != s.introduced || total > introducedMax || len(s.by) != total+1 {
				t.Fatalf("%d roots are introduced, counted are %d, and %d known in all", total, s.introduced, len(s.by))
			}
		}
		if _, ok := s.Best(named(-1, content.Mesh(), 0, "").name.ID, at(0), alike); !ok {
			t.Fatal("a root that was looked up is gone")
		}
	})
}

// TestHeadsOfOneRoot are bounded, and the one in use stays.
func TestHeadsOfOneRoot(t *testing.T) {
	s := New[*known]()
	used := s.Learn(named(1, content.Mesh(), 0, ""), at(0))
	for i := range 3 * headsMax {
		s.Learn(named(1, content.Mesh(), byte(i+1), ""), at(2*i))
		s.Best(used.name.ID, at(2*i+1), func(k *known) int {
			if k == used {
				return 1
			}
			return 0
		})
	}
	heads := slices.Collect(s.Of(used.name.ID))
	if len(heads) != headsMax || !slices.Contains(heads, used) {
		t.Errorf("%d heads, the one in use among them: %t", len(heads), slices.Contains(heads, used))
	}
}
