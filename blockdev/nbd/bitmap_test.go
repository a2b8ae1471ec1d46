//go:build linux || darwin

package nbd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/origin/content"
)

// remembering is a disk with snapshots, and what was written since each of them.
type remembering struct {
	*memory
	since map[uint64][]blockdev.Range
	fails error
}

func (r *remembering) Snapshots(context.Context) ([]uint64, error) {
	var numbers []uint64
	for n := range r.since {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, r.fails
}

func (r *remembering) Changes(_ context.Context, from uint64, off, length int64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		if _, ok := r.since[from]; !ok {
			yield(blockdev.Range{}, fmt.Errorf("snapshot %d: %w", from, content.ErrNotFound))
			return
		}
		for _, x := range r.since[from] {
			begin, end := max(x.Offset, off), min(x.Offset+x.Length, off+length)
			if begin < end && !yield(blockdev.Range{Offset: begin, Length: end - begin}, nil) {
				return
			}
		}
	}
}

// TestDirtyBitmaps asks for what was written since snapshots as backup tools do.
func TestDirtyBitmaps(t *testing.T) {
	const mib = 1 << 20
	disk := &remembering{memory: newMemory(16 * mib).fill(), since: map[uint64][]blockdev.Range{
		3: {{Offset: 0, Length: 64 << 10}, {Offset: 5 * mib, Length: mib}, {Offset: 16*mib - 4096, Length: 4096}}, 12: {},
	}}
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk})}, "disk")

	var info struct {
		Exports []struct {
			Contexts []string
		}
	}
	out := command(t, "libnbd-bin", "nbdinfo", "--json", uri)
	if err := json.Unmarshal(out, &info); err != nil || !slices.Equal(info.Exports[0].Contexts, []string{"base:allocation", "qemu:dirty-bitmap:3", "qemu:dirty-bitmap:12"}) {
		t.Errorf("nbdinfo: %v, %s", err, out)
	}
	type extent struct {
		Start, Offset, Length int64
		Data                  bool
		Type                  int
		Description           string
	}
	var extents []extent
	out = command(t, "libnbd-bin", "nbdinfo", "--map=qemu:dirty-bitmap:3", "--json", uri)
	if err := json.Unmarshal(out, &extents); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var dirty []blockdev.Range
	for _, e := range extents {
		if e.Type == 1 && e.Description == "dirty" {
			dirty = append(dirty, blockdev.Range{Offset: e.Offset, Length: e.Length})
		}
	}
	if !slices.Equal(dirty, disk.since[3]) {
		t.Errorf("nbdinfo finds dirty %v: %s", dirty, out)
	}
	out = command(t, "qemu-utils", "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,export=disk,server.type=unix,server.path="+socketOf(t, uri)+",x-dirty-bitmap=qemu:dirty-bitmap:3")
	if err := json.Unmarshal(out, &extents); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dirty = nil
	for _, e := range extents {
		if !e.Data { // so does qemu tell dirty
			dirty = append(dirty, blockdev.Range{Offset: e.Start, Length: e.Length})
		}
	}
	if !slices.Equal(dirty, disk.since[3]) {
		t.Errorf("qemu finds dirty %v: %s", dirty, out)
	}
}

func TestMetaContextsAreChosen(t *testing.T) {
	disk := &remembering{memory: newMemory(1 << 20), since: map[uint64][]blockdev.Range{}}
	for n := range uint64(9) {
		disk.since[n] = []blockdev.Range{{Offset: int64(n) * 8192, Length: 4096}}
	}
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk, "plain": newMemory(1 << 20)})}, "disk")
	c := greet(t, uri)
	c.mustOption(optStructured)
	c.structured = true
	for _, x := range []struct {
		code    uint32
		queries []string
		want    int // contexts; below zero: too many
	}{
		{optListMeta, nil, 10}, {optListMeta, []string{"qemu:"}, 9}, {optListMeta, []string{"qemu:dirty-bitmap:"}, 9}, {optListMeta, []string{"base:"}, 1},
		{optListMeta, []string{"qemu:dirty-bitmap:7"}, 1}, {optSetMeta, []string{"qemu:", "base:"}, 0}, {optSetMeta, nil, 0},
		{optSetMeta, []string{"qemu:dirty-bitmap:9", "qemu:dirty-bitmap:01", "qemu:allocation-depth"}, 0},
		{optSetMeta, slices.Collect(func(yield func(string) bool) {
			for n := range 9 {
				_ = yield(fmt.Sprint("qemu:dirty-bitmap:", n))
			}
		}), -1},
		{optSetMeta, []string{"qemu:dirty-bitmap:2", "base:allocation", "qemu:dirty-bitmap:1"}, 3},
	} {
		got := c.option(x.code, meta("disk", x.queries...))
		if last := got[len(got)-1].kind; x.want < 0 && last != errTooBig || x.want >= 0 && (last != repAck || len(got) != x.want+1) {
			t.Errorf("option %d of %q: %v, want %d contexts", x.code, x.queries, got, x.want)
		}
	}
	c.open("disk")
	got := c.do(cmdBlockStatus, 0, 512, 1<<20-1024)
	want := []uint32{1<<20 - 1024, 3, 8192 - 512, 0, 4096, 1, 1<<20 - 512 - 8192 - 4096, 0, 2*8192 - 512, 0, 4096, 1, 1<<20 - 512 - 2*8192 - 4096, 0}
	if !slices.Equal(got.states, want) || !slices.Equal(got.contexts, []uint32{1, 2, 3}) {
		t.Errorf("contexts %v say %v, want %v", got.contexts, got.states, want)
	}
	got = c.do(cmdBlockStatus, flagReqOne, 0, 16384)
	if want := []uint32{16384, 3, 8192, 0, 16384, 0}; !slices.Equal(got.states, want) {
		t.Errorf("one extent each: %v, want %v", got.states, want)
	}
	delete(disk.since, 2)
	if got := c.do(cmdBlockStatus, 0, 0, 16384); got.code == 0 {
		t.Errorf("of a snapshot that is gone: %v", got.states)
	}

	disk.fails = content.ErrUnavailable
	c = greet(t, uri)
	c.mustOption(optStructured)
	if got := c.option(optSetMeta, meta("disk", "base:allocation", "qemu:dirty-bitmap:1")); len(got) != 1 || got[0].kind != errUnknown {
		t.Errorf("when the snapshots can't be told: %v", got)
	}
	for _, x := range []struct {
		code    uint32
		queries []string
	}{{optListMeta, nil}, {optSetMeta, []string{"base:allocation"}}} {
		if got := c.option(x.code, meta("disk", x.queries...)); len(got) != 2 || string(got[0].data[4:]) != "base:allocation" {
			t.Errorf("without the snapshots, to option %d: %v", x.code, got)
		}
	}
}

// socketOf returns the path of the socket that a URI names.
func socketOf(tb testing.TB, uri string) string {
	tb.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		tb.Fatal(err)
	}
	return u.Query().Get("socket")
}
