package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// crowded is a folder of some thousand files, with other names of some, in folders of their own.
func crowded(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for i := range 3000 {
		file := filepath.Join(dir, fmt.Sprintf("d%02d/f%d", i%40, i))
		must(t, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, noise(file, i*37%9000), 0o600))
		if i%5 == 0 {
			must(t, os.Link(file, filepath.Join(dir, fmt.Sprintf("d%02d/again%d", i%7, i))))
		}
	}
	sparse(t, filepath.Join(dir, "d00/sparse"), 20<<20, 3<<20, 15<<20)
	must(t, os.WriteFile(filepath.Join(dir, "a-large"), noise("large", smallMax+1), 0o644))
	return dir
}

// TestManyAtOnce: what is written at once is what was planted; also over files that are one there and several in the tree.
func TestManyAtOnce(t *testing.T) {
	src, out := crowded(t), t.TempDir()
	g, want := planting(t, Options{Path: src, Format: Dir}), described(t, src)
	differ(t, "written out", harvested(t, g, out), want)
	for i := range 400 {
		first := filepath.Join(out, fmt.Sprintf("d%02d/f%d", i%40, i))
		for _, other := range []string{fmt.Sprintf("d%02d/f%d", i%40, i+400), fmt.Sprintf("d%02d/f%d", i%40, i+800)} {
			must(t, os.Remove(filepath.Join(out, other)), os.Link(first, filepath.Join(out, other)))
		}
	}
	differ(t, "over what was one file", harvested(t, g, out), want)
}

// TestHotFilesFirst: what holds others up is written when they are there.
func TestHotFilesFirst(t *testing.T) {
	src, out := crowded(t), t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "z-program"), noise("program", smallMax+1), 0o755))
	g := planting(t, Options{Path: src, Format: Dir})
	var its []uint64 // chunks
	of := g.openBy(t, func(ctx context.Context, index uint64, off int, p []byte) error {
		its = append(its, index)
		return g.ReadChunk(ctx, index, off, p)
	})
	in, err := of.List(t.Context(), of.Top())
	must(t, err)
	its = nil
	_, err = of.ReadAt(t.Context(), in[0], make([]byte, in[0].Size), 0)
	must(t, err)
	first, behind := its[0], its[len(its)-1]+1
	read := false
	slow := g.openBy(t, func(ctx context.Context, index uint64, off int, p []byte) error {
		if index > first && index+1 < behind && !read { // of no other file
			read = true
			for _, name := range []string{"z-program", "d39/f2999"} {
				if is, err := os.Stat(filepath.Join(out, name)); err != nil || is.Size() == 0 {
					t.Errorf("%s is not there yet: %v", name, err)
				}
			}
		}
		return g.ReadChunk(ctx, index, off, p)
	})
	must(t, Harvest(t.Context(), slow, out, func(text string) { t.Error(text) }))
	if string(in[0].Name) != "a-large" || !read {
		t.Errorf("%s was not read", in[0].Name)
	}
}

// TestOneEndsAll: what can't be read, or somebody who ends it, ends all writers, and nothing stays open.
func TestOneEndsAll(t *testing.T) {
	src := crowded(t)
	g := planting(t, Options{Path: src, Format: Dir})
	opened := func() int {
		in, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(in)
	}
	bad := errors.New("a chunk that is nowhere")
	for _, way := range []string{"fails", "is ended"} {
		ctx, end := context.WithCancelCause(t.Context())
		var reads, reading atomic.Int64
		of := g.openBy(t, func(ctx context.Context, index uint64, off int, p []byte) error {
			reading.Add(1)
			defer reading.Add(-1)
			switch n := reads.Add(1); {
			case n < 2000:
				return g.ReadChunk(ctx, index, off, p)
			case n == 2000 && way == "fails":
				return bad
			case n == 2000:
				end(bad)
			}
			<-ctx.Done() // as long as the others wait
			return context.Cause(ctx)
		})
		before := opened()
		if err := Harvest(ctx, of, t.TempDir(), func(text string) { t.Error(text) }); !errors.Is(err, bad) {
			t.Errorf("%s: %v", way, err)
		}
		if n, left := opened(), reading.Load(); n != before || left != 0 {
			t.Errorf("%s: %d files were open, and %d are; %d are at it", way, before, n, left)
		}
		end(nil)
	}
}

// TestProgramsThatRun: a program that runs goes on as it was, and another takes its place.
func TestProgramsThatRun(t *testing.T) {
	src, out := t.TempDir(), t.TempDir()
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	for dir, more := range map[string]string{src: "; printf more >>program", out: ""} {
		shell(t, dir, "cp "+sleep+" program; chmod 4755 program; ln program again"+more)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(out, "program"), "1000")
	must(t, cmd.Start())
	g := planting(t, Options{Path: src, Format: Dir})
	differ(t, "over a program that runs", harvested(t, g, out), described(t, src))
	must(t, cmd.Process.Kill())
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.ExitCode() != -1 {
		t.Errorf("the program ended: %v", err)
	}
	if in, err := os.ReadDir(out); err != nil || len(in) != 2 {
		t.Errorf("in the folder are %v, %v", in, err)
	}
}
