package garbage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"lukechampine.com/blake3"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
)

// records are all that there are, as they are.
func (s *stage) records() (out []garbage.Record) {
	for r, err := range (garbage.Source{Bucket: s.store, Verifier: s.check, Now: s.now}).Records(context.Background()) {
		if err != nil {
			s.fault(err)
			break
		}
		out = append(out, r)
	}
	return out
}

// whole holds that what was acknowledged, or all, can be read to its last byte.
func (s *stage) whole(when string, all bool) {
	for _, r := range s.records() {
		s.mu.Lock()
		acked := s.acked[r.Envelope.Commit]
		s.mu.Unlock()
		if !all && !acked {
			continue
		}
		if err := errors.Join(r.Err, s.readable(r)); err != nil {
			s.fault(fmt.Errorf("%s, %s (acknowledged: %t) is hurt: %w", when, r.Label(), acked, err))
		}
	}
}

func (s *stage) readable(r garbage.Record) error {
	ctx := context.Background()
	if r.Head != nil {
		report, err := verify.Config{Reader: pack.NewReader(s.store)}.Image(ctx, *r.Head)
		if err = errors.Join(err, report.Err()); err != nil {
			return err
		}
	}
	for _, x := range fold.InBucket(ctx, func() (bucket.Bucket, error) { return s.store, nil }, r.Segments) {
		o, err := x.Open()
		if err != nil {
			return fmt.Errorf("segment %s: %w", x.Ref.Key(), err)
		}
		b, err := io.ReadAll(o)
		if err = errors.Join(err, o.Close()); err != nil {
			return err
		}
		if sum := blake3.Sum256(b); [16]byte(sum[:]) != x.Ref.Sum || int64(len(b)) != x.Ref.Bytes {
			return fmt.Errorf("segment %s has other bytes", x.Ref.Key())
		}
	}
	return nil
}

// dead are the keys of packs and journals that nothing names: neither a record, nor what took the place of what one names.
// What a collection keeps beside that, of journals of volumes that live, is not among them.
func (s *stage) dead() (out []string) {
	ctx := context.Background()
	named, volumes, tails := map[string]bool{}, map[content.VolumeID]bool{}, map[content.VolumeID]bool{}
	name := func(id pack.ID) {
		for range 10 {
			named[id.Key()] = true
			f, err := pack.ReadFooter(ctx, s.store, id)
			if err != nil || f.Moved() == "" {
				break
			}
			id = f.Moved()
		}
	}
	for _, r := range s.records() {
		if r.Volume != (content.VolumeID{}) {
			volumes[r.Volume] = true
		}
		for _, x := range r.Segments {
			if named[x.Key()] = true; x.Tails > 0 {
				tails[x.Volume] = true
			}
		}
		if r.Head == nil {
			continue
		}
		m, err := pack.NewReader(s.store).ReadManifest(ctx, *r.Head)
		if err != nil {
			s.fault(fmt.Errorf("%s: %w", r.Label(), err))
		}
		for _, p := range m.Packs {
			name(p.ID)
		}
		name(r.Head.Manifest.Pack)
	}
	for info, err := range s.store.List(ctx, "", "") {
		if err != nil {
			s.fault(err)
			break
		}
		switch ref, _, err := content.ParseJournalKey(info.Key); {
		case named[info.Key], err == nil && (volumes[ref.Volume] || tails[ref.Volume]):
		case strings.HasPrefix(info.Key, string(content.KeyPacks)), strings.HasPrefix(info.Key, string(content.KeyJournals)):
			out = append(out, info.Key)
		}
	}
	return out
}

// tombstones are the keys that batches are about to delete. Packs that may pay to be written anew are looked at again and
// again.
func (s *stage) tombstones() (out []string) {
	ctx := context.Background()
	for info, err := range s.store.List(ctx, string(content.KeyGarbage), "") {
		var b []byte
		if err == nil {
			b, _, err = bucket.ReadAll(ctx, s.store, info.Key, 1<<20)
		}
		var said struct {
			Delete []string `cbor:"delete"`
			Repack []string `cbor:"repack"`
		}
		if err == nil {
			err = s.codec.Unmarshal(b, &said)
		}
		if err != nil {
			s.fault(fmt.Errorf("batch %s: %w", info.Key, err))
			break
		}
		if len(said.Delete)+len(said.Repack) == 0 {
			s.fault(fmt.Errorf("batch %s has nothing", info.Key))
		}
		out = append(out, said.Delete...)
	}
	return out
}
