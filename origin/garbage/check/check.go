// Package check reads what the records of an origin name, and says which names are hurt: records whose signature or body
// is bad, map nodes, pages, manifests and chunks that are not there or something else, packs that are too short, and
// segments of journals that are missing or damaged. What several names share is read once, and found for each.
//
// It repairs nothing. Content that is imported again is stored anew where it is damaged, once the packs that are suspect
// were marked so (index.Suspect).
package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
)

const (
	// HurtMax bounds the names that a Report lists, and DamagesMax what it says of each: who has more has lost the bucket,
	// and needs no list.
	HurtMax    = 10_000
	DamagesMax = 10
	// SuspectMax bounds the packs that a Report lists as suspect.
	SuspectMax = 10_000

	// segmentsAtOnce bounds those that are read at once, each by a few KiB.
	segmentsAtOnce = 8
)

// Config says what to check, and how.
type Config struct {
	garbage.Source
	// ReadData is the share of the chunks that is read, of 1: 1 is all, 0 none. They are chosen by runs of packs, by Seed:
	// runs with other seeds come by all of them in time. All else is always read: records, map nodes, pages, manifests and
	// segments; and whether each pack is there and long enough for what it is to have is told from a list.
	ReadData float64
	Seed     uint64
	// After is the key behind which to go on: the Last of what an earlier run has told; "" is from the beginning.
	After string
	// Progress is told what was found so far, by one goroutine at a time; it must return at once. nil is nobody.
	Progress func(Report)
}

// Report is what was found. What is said of packs and chunks counts each once, whoever names it.
type Report struct {
	// Last is the key of the last record that is done, and with it all before: where a later run may go on.
	Last string `json:"last" doc:"the key of the last record that is done"`
	// Records were looked at, and Roots are those that they name.
	Records int64 `json:"records"`
	Roots   int64 `json:"roots"`
	// Chunks and Nodes were read and are right, a node with its page; StoredBytes is what the chunks took. Unread chunks
	// were not chosen.
	Chunks      uint64 `json:"chunks"`
	Nodes       uint64 `json:"nodes"`
	StoredBytes uint64 `json:"stored_bytes"`
	Unread      uint64 `json:"unread" doc:"chunks of which was only looked whether their packs can have them"`
	// Segments of journals were read and are right.
	Segments     uint64 `json:"segments"`
	SegmentBytes uint64 `json:"segment_bytes"`
	// HurtNames is how many names are hurt, and Hurt are the first HurtMax of them, by their keys.
	HurtNames int64  `json:"hurt_names"`
	Hurt      []Hurt `json:"hurt"`
	// Suspect are packs that hold something else than their own directories say, see index.Suspect.
	Suspect []pack.ID `json:"suspect"`
}

// Hurt is a name that is not whole.
type Hurt struct {
	Name string `json:"name" doc:"as image:debian"`
	Key  string `json:"key" doc:"of its record"`
	// Bad is how many objects are damaged, and Missing how many are not there. What lies under a bad map node is not known,
	// and not counted.
	Bad     uint64 `json:"bad"`
	Missing uint64 `json:"missing"`
	// Damages says of the first DamagesMax what is wrong.
	Damages []string `json:"damages"`
}

// Run checks all records behind cfg.After, in the order of their keys. What is broken is in the Report, and ends nothing.
// The error is of a store that does not answer, of ctx, or of a key among the records that is none of a record's: then the
// Report is of a part, and another run may go on behind its Last.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if !(cfg.ReadData >= 0 && cfg.ReadData <= 1) {
		return Report{}, fmt.Errorf("check the origin: %w: a share of %v of the chunks, want 0 to 1", content.ErrInvalid, cfg.ReadData)
	}
	cfg.Bucket, cfg.Recall = bucket.Readable(cfg.Bucket), nil // a record is read too
	r := &run{cfg: cfg, codec: content.NewCodec(), done: Report{Last: cfg.After, Hurt: []Hurt{}, Suspect: []pack.ID{}}}
	packs, err := verify.ListPacks(ctx, cfg.Bucket)
	if err == nil {
		r.image = verify.Config{Reader: pack.NewReader(cfg.Bucket), Packs: &packs, Seen: verify.NewSeen(), Choose: cfg.choose(), Progress: r.reading}
		for rec, bad := range cfg.RecordsAfter(ctx, cfg.After) {
			if err = bad; err == nil {
				err = r.record(ctx, rec)
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("check the origin behind %q: %w", r.done.Last, err)
	}
	return r.done, err
}

// choose returns what chooses runs; nil chooses all.
func (cfg Config) choose() func(pack.Run) bool {
	if cfg.ReadData == 1 {
		return nil
	}
	return func(at pack.Run) bool {
		sum := content.Sum(fmt.Appendf(nil, "%d %d %s", cfg.Seed, at.N, at.Pack))
		return float64(binary.BigEndian.Uint64(sum[:])) < cfg.ReadData*(1<<64)
	}
}

type run struct {
	cfg   Config
	codec *content.Codec
	image verify.Config

	mu   sync.Mutex    // guards what follows, and serializes Progress
	now  verify.Report // of the root that is read
	done Report
}

// tell changes what was found, and tells of it.
func (r *run) tell(change func(*Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if change(&r.done); r.cfg.Progress != nil {
		out := r.done
		out.add(r.now)
		r.cfg.Progress(out)
	}
}

func (r *run) reading(now verify.Report) {
	r.tell(func(*Report) { r.now = now })
}

func (r *Report) add(o verify.Report) {
	r.Chunks, r.Nodes, r.StoredBytes, r.Unread = r.Chunks+o.Chunks, r.Nodes+o.Nodes, r.StoredBytes+o.StoredBytes, r.Unread+o.Unread
}

// record checks one as it was listed, and where that is hurt, as it is by then.
func (r *run) record(ctx context.Context, rec garbage.Record) error {
	var h Hurt
	gone, err := r.cfg.Settle(ctx, rec, func(now garbage.Record) (well bool, err error) {
		h, err = r.check(ctx, now)
		return h.whole(), err
	})
	if err != nil {
		return err
	}
	if gone {
		h = Hurt{}
	}
	r.tell(func(to *Report) {
		to.Records, to.Last = to.Records+1, rec.Key
		if h.whole() {
			return
		}
		if to.HurtNames++; len(to.Hurt) < HurtMax {
			to.Hurt = append(to.Hurt, h)
		}
	})
	return nil
}

// check checks all that a record names.
func (r *run) check(ctx context.Context, rec garbage.Record) (Hurt, error) {
	h := Hurt{Name: rec.Label(), Key: rec.Key}
	if rec.Err != nil { // what it names is not known, and nothing was signed that can't be read
		h.add(rec.Err)
		return h, nil
	}
	if rec.Unsigned != nil {
		h.add(rec.Unsigned)
	}
	if _, err := catalog.Describe(r.codec, rec.Envelope); err != nil && rec.Unsigned == nil {
		h.add(err)
	}
	if rec.Head != nil {
		if err := r.root(ctx, *rec.Head, &h); err != nil {
			return h, err
		}
	}
	err := r.segments(ctx, rec.Segments, &h)
	return h, err
}

// root reads what a record's root needs, unless another's was the same and right.
func (r *run) root(ctx context.Context, head pack.Head, h *Hurt) error {
	if r.image.Seen.Has(head) {
		return nil
	}
	image := r.image
	image.Damaged = func(d verify.Damage) { h.add(d) }
	report, err := image.Image(ctx, head)
	r.tell(func(to *Report) {
		r.now = verify.Report{}
		to.add(report)
		for _, id := range report.Suspect {
			if len(to.Suspect) < SuspectMax && !slices.Contains(to.Suspect, id) {
				to.Suspect = append(to.Suspect, id)
			}
		}
		if err == nil {
			to.Roots++
		}
	})
	if err == nil && report.First == nil {
		r.image.Seen.Add(head)
	}
	return err
}

// segments reads those that were not found right before.
func (r *run) segments(ctx context.Context, refs []content.SegmentRef, h *Hurt) error {
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(segmentsAtOnce)
	for _, ref := range refs {
		if r.image.Seen.Has(ref) {
			continue
		}
		group.Go(func() error {
			err := catalog.CheckSegment(reading, r.cfg.Bucket, ref)
			switch {
			case err == nil:
				r.image.Seen.Add(ref)
				r.tell(func(to *Report) { to.Segments, to.SegmentBytes = to.Segments+1, to.SegmentBytes+uint64(ref.Bytes) })
			case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt):
				r.tell(func(*Report) { h.add(err) })
			default:
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

func (h *Hurt) whole() bool { return h.Bad+h.Missing == 0 }

func (h *Hurt) add(err error) {
	if errors.Is(err, content.ErrNotFound) {
		h.Missing++
	} else {
		h.Bad++
	}
	if len(h.Damages) < DamagesMax {
		h.Damages = append(h.Damages, content.Line(err))
	}
}
