package cache

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestManyPins: hundreds of lists that share what they name pin each object as long as one
// of them does, and all together weigh what the objects do.
func TestManyPins(t *testing.T) {
	const lists, each = 300, 16
	c, err := Open(Config{Dir: t.TempDir(), Quota: quotaMin, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []content.Verified
	var ids []content.CID
	for n := range lists + each {
		all = append(all, object(n, 4096))
		ids = append(ids, all[n].CID())
	}
	for i := range lists {
		if i == lists/2 {
			for _, v := range all {
				put(t, c, v)
			}
		}
		if err := c.Pin(fmt.Sprint(i), 0, slices.Values(ids[i:i+each])); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Stats().Pinned; got != lists+each-1 {
		t.Errorf("%d objects are pinned", got)
	}
	slot := int64(classOf(4096).size())
	most := slot*(lists+each-1) + content.ChunkSizeDefault
	absent := content.Sum([]byte("absent"))
	if err := c.Pin("more", most, slices.Values([]content.CID{absent, ids[0]})); err != nil {
		t.Errorf("what just fits: %v", err)
	}
	if err := c.Pin("too much", most, slices.Values([]content.CID{content.Sum([]byte("another"))})); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("what does not: %v", err)
	}
	if err := c.Pin("more", most, slices.Values([]content.CID{content.Sum([]byte("another"))})); err != nil {
		t.Errorf("what replaces as much: %v", err)
	}
	for i := range lists {
		if i%each == 0 {
			continue
		}
		if err := c.Unpin(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for n, id := range ids[:lists] {
		if s, ok := c.look(c.secret.key(id)); !ok || !s.word.pinned() {
			t.Fatalf("object %d is pinned no more", n)
		}
	}
	for i := range lists {
		if err := c.Unpin(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Stats().Pinned; got != 0 || len(c.pinned) != 1 {
		t.Errorf("%d objects are pinned still, by %d names", got, len(c.pinned))
	}
}
