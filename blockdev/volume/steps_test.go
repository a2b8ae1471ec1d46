package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// stepsOf are the names that the code has for its steps.
func stepsOf(t *testing.T) (all []string) {
	t.Helper()
	sources, err := filepath.Glob("*.go")
	must(t, err)
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		b, err := os.ReadFile(source)
		must(t, err)
		for _, m := range regexp.MustCompile(`\.Step\("(\w+)"\)`).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) < 2 {
		t.Fatalf("the code has the steps %q alone: they are written otherwise by now", all)
	}
	return all
}

// kills ends a volume at each step of what is done with it, and between.
type kills struct {
	*testing.T
	cfg  Config
	v    *Volume
	want []byte // the disk
	next []byte // what it becomes by what is under way
	kept content.Position
	was  []byte // the disk at that place
	at   map[string]int
	dead []killedAt
}

type killedAt struct {
	step      string
	cfg       Config
	may, want []byte
	kept      content.Position
	was       []byte
}

func (k *kills) kill(step string) {
	if k.at[step]++; k.at[step] > 12 { // and enough of them
		return
	}
	cfg := k.cfg
	cfg.Dir = killed(k.T, k.cfg.Dir)
	if cfg.Kept = nil; k.kept.Seq > 0 {
		cfg.Kept = []content.Position{k.kept}
	}
	k.dead = append(k.dead, killedAt{step, cfg, slices.Clone(k.next), slices.Clone(k.want), k.kept, k.was})
}

// do has the disk be next once something is done.
func (k *kills) do(what func() error) {
	must(k, what())
	k.v.work.Wait()
	k.want = slices.Clone(k.next)
	k.kill("between")
}

func (k *kills) write(count int) {
	for i := range count {
		p, off := bytes.Repeat([]byte{byte(len(k.dead) + 1)}, extents.Unit), int64(i%5)*extents.Unit
		copy(k.next[off:], p)
		k.do(func() error { return k.v.WriteAt(k.Context(), p, off, i%3 == 0) })
	}
}

// seal keeps a place, and gives the one before back.
func (k *kills) seal() (p content.Position) {
	k.do(func() (err error) { p, err = k.v.Seal(k.Context()); return err })
	if k.kept.Seq > 0 {
		k.v.Release(k.kept)
	}
	k.kept, k.was = p, slices.Clone(k.want)
	return p
}

func (k *kills) tend() {
	k.do(func() error { return k.v.absorb() })
	k.do(func() error { k.v.tend(); return nil })
}

// TestKillAtEachStep ends a volume at each step that the code names, of writes, seals,
// compaction and folds over several rounds: the disk is what it was or what it becomes, and
// a place that is kept reads as it did. A step that nothing here comes to fails the test.
func TestKillAtEachStep(t *testing.T) {
	k := &kills{T: t, cfg: smallSegments(create(t), nil), want: make([]byte, testSize), next: make([]byte, testSize), at: map[string]int{}}
	k.cfg.SegmentSize = 16 << 10
	var err error
	k.v, err = Open(k.cfg)
	must(t, err)
	k.v.tended.Store(true) // what tends is called here
	k.v.cfg.Step = k.kill
	for range 2 {
		k.write(16)
		k.seal()
		k.write(16)
		k.tend()
		k.seal()
		k.tend()
		must(t, k.v.ReadAt(t.Context(), make([]byte, extents.Unit), 0))
		p := k.seal()
		if _, err := k.v.Merge(t.Context(), &bytes.Buffer{}, k.cfg.Base, p); err != nil {
			t.Fatal(err)
		}
		k.cfg.Source, k.cfg.SourceSize, k.cfg.ChunkSize, k.cfg.Base = flat(k.want), testSize, testChunk, p
		k.kill("the root is named")
		k.do(func() error { return k.v.Rebase(k.cfg.Source, testSize, testChunk, p) })
		k.cfg.Epoch++
		k.do(func() error { k.v.Enter(k.cfg.Epoch); return nil })
	}
	k.v.cfg.Step = func(string) {}
	must(t, k.v.Close())
	for _, step := range stepsOf(t) {
		if k.at[step] == 0 {
			t.Errorf("nothing is killed at the step %q", step)
		}
	}
	for _, d := range k.dead {
		v, err := Open(d.cfg)
		if err != nil {
			t.Errorf("at %q: %v", d.step, err)
			continue
		}
		got := make([]byte, testSize)
		if err := v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, d.want) && !bytes.Equal(got, d.may) {
			t.Errorf("at %q: the disk is neither what it was nor what it becomes: %v", d.step, err)
		}
		if d.kept.Seq >= max(d.cfg.Base.Seq, 1) {
			if err := v.ReadAsOf(t.Context(), got, 0, d.kept); err != nil || !bytes.Equal(got, d.was) {
				t.Errorf("at %q: what was at entry %d reads otherwise: %v", d.step, d.kept.Seq, err)
			}
		}
		must(t, v.Close())
	}
}
