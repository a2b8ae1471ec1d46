package fetch_test

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
)

// TestWarmSaysWhatDoesNotFit warms an image on a disk that is smaller than the image.
func TestWarmSaysWhatDoesNotFit(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount a small disk, as root: %v: %s", err, out)
	}
	defer exec.Command("umount", "--lazy", dir).Run() // the index is mapped until its table is collected
	small, err := cache.Open(cache.Config{Dir: dir, Quota: 1 << 30, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if s := small.Stats(); s.Limit > 24<<20 {
		t.Errorf("of a quota of %d it may take %d", s.Quota, s.Limit)
	}
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 2 * imageChunks})
	g := w.join("a", func(cfg *fetch.Config) { cfg.Cache = small }).open(im)
	if err := g.Warm(t.Context(), nil); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("warmed: %v", err)
	}
	w.check(readAll(t.Context(), g, im))
}
