package instances

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/lab"
)

// cut is what is in a folder: the chunks of its tree with the bytes that each takes when it is stored, and its files with their
// sizes, by name and time.
type cut struct{ chunks, files map[string]int64 }

func cutOf(t *testing.T, dir string) cut {
	t.Helper()
	out := cut{map[string]int64{}, map[string]int64{}}
	enc, err := pack.NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	f, err := convert.OpenFiles(t.Context(), convert.Options{Path: dir, Format: convert.Dir, Warn: func(string) {}, Note: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := tree.NewWriter(tree.Config{Codec: content.NewCodec(), Add: func(_ context.Context, _ uint64, raw []byte) error {
		stored, _ := pack.EncodeFrame(enc, nil, raw)
		out.chunks[content.Sum(raw).String()] = int64(len(stored))
		return nil
	}})
	if err == nil {
		_, err = f.Plant(t.Context(), w)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				out.files[path[len(dir):]+info.ModTime().String()] = info.Size()
			}
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// putAway deprovisions an instance that had other data when it was put away last, and returns what it has. Sent is a tenth more
// than the chunks that are new, at most, and one node of the tree's map with its page, of a thousand chunks: of little that is
// new that is much.
func putAway(t *testing.T, front *lab.Front, n *lab.Node, i api.Instance, was cut) cut {
	t.Helper()
	reach(t, n, http.MethodPost, i.Name+"/hibernate", "", "hibernated")
	is, before := cutOf(t, i.Dir), front.Taken("packs/")
	reach(t, n, http.MethodPost, i.Name+"/deprovision", "", "unprovisioned")
	sent := front.Taken("packs/") - before
	chunks, files := is.new(was)
	t.Logf("sent: %d bytes for chunks of %d that are new; %d if files were sent whole", sent, chunks, files)
	if float64(sent) > 1.1*float64(chunks)+80<<10 {
		t.Errorf("%d bytes are sent, and %d are in new chunks", sent, chunks)
	}
	return is
}

// new is how many bytes are of what was not there before: in chunks, and in files that are sent whole.
func (c cut) new(before cut) (chunks, files int64) {
	count := func(now, before map[string]int64) (sum int64) {
		for key, n := range now {
			if _, ok := before[key]; !ok {
				sum += n
			}
		}
		return sum
	}
	return count(c.chunks, before.chunks), count(c.files, before.files)
}
