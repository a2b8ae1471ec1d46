package boot

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// smallChunks make the disk of tests, whose guest reads of smallRead of them.
	smallChunks, smallRead = 1024, 160
	chunk                  = content.ChunkSizeDefault
)

// small makes a disk half of whose bytes compress, and what a guest reads of it: here and there, now and then two at once.
func small(tb testing.TB) (*os.File, Trace) {
	tb.Helper()
	random := rand.NewChaCha8([32]byte{16})
	raw := make([]byte, smallChunks*chunk)
	for at := 0; at < len(raw); at += chunk {
		_, _ = random.Read(raw[at : at+chunk/2])
	}
	path := filepath.Join(tb.TempDir(), "small.raw")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		tb.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	var t Trace
	at, dice := time.Duration(0), rand.New(random)
	for i, n := range dice.Perm(smallChunks)[:smallRead] {
		took := time.Duration(1+dice.IntN(3)) * time.Millisecond
		t = append(t, Access{int64(n) * chunk, 4096 << dice.IntN(6), at, at + took})
		if i%4 == 0 {
			t = append(t, Access{int64(n)*chunk + chunk/2, 4096, at, at + 2*took})
		}
		at += took + time.Duration(dice.IntN(4))*time.Millisecond
	}
	return f, t
}

func near() netns.Line { return netns.Line{Rate: 1e9 / 8, Delay: time.Millisecond} }

// TestColdBoot has one member's guest teach the publisher what boots of an image want, and another's boot where nothing of it is:
// all of the list comes, once and in few requests, and nearly nothing else.
func TestColdBoot(t *testing.T) {
	s := newSite(t)
	raw, trace := small(t)
	run(t, s.publisher, "image", "import", "disk", raw.Name())
	teacher, err := s.lab.Start(t.Context(), "teachers", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trace.Replay(t.Context(), run(t, teacher, "volume", "create", "taught", "--from", "image:disk", "--transport", "nbd"), raw, 1); err != nil {
		t.Fatal(err)
	}
	profiled(t, s)
	if err := teacher.Stop(); err != nil { // the store alone has it then
		t.Fatal(err)
	}
	list := s.record(t, "disk").Boot
	if n := len(trace.Chunks(chunk)); list.Chunks() != n {
		t.Errorf("%d chunks are listed, %d were read", list.Chunks(), n)
	}
	c := s.cold(near())
	c.mark()
	if _, _, err := c.boots(t.Context(), "cold", "disk", trace, raw, 1); err != nil {
		t.Fatal(err)
	}
	got := c.since()
	t.Logf("%d chunks are listed, of %d bytes: %d requests for packs, %d bytes of chunks, %d of the store", list.Chunks(), list.Stored, c.asked.of("packs/"), got.raw, got.sent)
	// What finds them comes beside them; a guest in such a hurry reads some itself, which splits what is asked for.
	const beside, besideBytes = 8, 512 << 10
	if most := int(list.Stored>>20+1) + beside; c.asked.of("packs/") > most {
		t.Errorf("%d requests for packs, for a list of %d bytes: want %d at most", c.asked.of("packs/"), list.Stored, most)
	}
	if most := int64(list.Chunks()*chunk + besideBytes); got.raw > most {
		t.Errorf("%d bytes came, want those of %d chunks and %d beside", got.raw, list.Chunks(), besideBytes)
	}
	if most := int64(list.Stored) + besideBytes; got.sent > most {
		t.Errorf("the store sent %d bytes, want those of the list, %d, and %d beside", got.sent, list.Stored, besideBytes)
	}
	c.end()
}

// profiled waits until the publisher has a list by what members tell it, which they do once boots are over.
func profiled(t *testing.T, s *site) {
	t.Helper()
	tick, late := time.NewTicker(time.Second), time.After(2*time.Minute)
	defer tick.Stop()
	for {
		_, err := s.publisher.Run(t.Context(), "image", "profile", "disk", "--runs", "0")
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal(err)
		}
	}
}

// TestListsAreHints boots by lists that are wrong: one of another root is refused, and one of chunks that nobody reads costs those at
// most. What the guest reads is right.
func TestListsAreHints(t *testing.T) {
	s := newSite(t)
	raw, trace := small(t)
	run(t, s.publisher, "image", "import", "disk", raw.Name())
	honest := s.record(t, "disk")
	read := map[uint64]bool{}
	for _, n := range trace.Chunks(chunk) {
		read[n] = true
	}
	const uselessStages = 4
	useless := &catalog.Boot{Root: honest.Root(t), Runs: 1, Made: time.Now().Unix()}
	var stage []uint64
	for n := uint64(0); n < smallChunks && len(useless.Stages) < uselessStages; n++ {
		if read[n] {
			continue
		}
		if stage = append(stage, n); len(stage) == catalog.BootStageMax {
			useless.Stages, stage = append(useless.Stages, catalog.BootStage{Share: 1, Chunks: stage}), nil
		}
	}
	useless = useless.Fit(catalog.BootSizeMax)
	s.publishAs(t, "useless", honest.Image, useless)
	s.publish(t, "foreign", foreign(t, honest, useless))

	c := s.cold(near())
	defer c.end()
	if _, err := c.Run(t.Context(), "volume", "create", "foreign", "--from", "image:foreign", "--transport", "nbd"); err == nil || !strings.Contains(err.Error(), "boot list") {
		t.Errorf("a list of another root: %v", err)
	}
	c.mark()
	if _, _, err := c.boots(t.Context(), "useless", "useless", trace, raw, 1); err != nil {
		t.Fatal(err)
	}
	// Where nothing is read ahead, for there is a list, nothing else comes.
	const beside = 4 << 20
	got, most := c.since(), int64((useless.Chunks()+len(read))*chunk+beside)
	t.Logf("%d bytes came, want %d at most: those of %d listed chunks, of %d that were read, and some beside", got.raw, most, useless.Chunks(), len(read))
	if got.raw > most {
		t.Fail()
	}
}

// foreign encodes an image whose list is of another root.
func foreign(t *testing.T, of published, list *catalog.Boot) []byte {
	t.Helper()
	of.Boot = list
	b, err := of.Encode(content.NewCodec())
	root, other := of.Root(t), of.Root(t)
	other[0]++
	if n := bytes.Count(b, root[:]); n != 1 {
		err = errors.Join(err, errors.New("the record does not name its root just once"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Replace(b, root[:], other[:], 1)
}
