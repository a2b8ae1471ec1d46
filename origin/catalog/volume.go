package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// VolumeState says whether a node may take the next epoch of a volume.
type VolumeState string

// The states of a volume's record.
const (
	// Attached: the holder serves it, or did when it was last heard of.
	Attached VolumeState = "attached"
	// Released: the holder gave it up; any node of the farm may attach it.
	Released VolumeState = "released"
)

// The policies of a volume: what a flush waits for. That of farm holders is "farm:K".
const (
	PolicyLocal  = "local"
	PolicyOrigin = "origin"
	policyFarm   = "farm:"
)

const (
	volumeMagic = "grange-volume/3"

	// HoldersMax bounds the members that hold copies of what is not folded: their keys are
	// in a record, which has to stay small.
	HoldersMax = 4
	// HotSizeMax bounds the list of a volume, in bytes, and HotSegmentsMax the segments that a record with one has: with
	// more there is no room, see TestTheLargestRecordsFit.
	HotSizeMax, HotSegmentsMax = 640, 32
)

// PolicyHolders returns how many holders a policy asks for; 0 for local and origin. A
// policy that is none is ErrInvalid.
func PolicyHolders(policy string) (int, error) {
	if policy == PolicyLocal || policy == PolicyOrigin {
		return 0, nil
	}
	text, ok := strings.CutPrefix(policy, policyFarm)
	k, err := strconv.Atoi(text)
	if !ok || err != nil || k < 1 || k > HoldersMax || strconv.Itoa(k) != text {
		return 0, fmt.Errorf("durability %.20q: %w: want local, origin, or farm:K with K from 1 to %d", policy, content.ErrInvalid, HoldersMax)
	}
	return k, nil
}

// Volume is the body of a volume's record: all that another node needs to go on with it.
// What was written is in Head up to Base, in Segments behind that, and behind them with
// the holders, or on the holder's disk alone: the policy says which.
//
// Encoded as a dag-cbor array: magic "grange-volume/3", head (the bytes of pack.Head, or
// null), lineage (the roots' hashes, 32 bytes each), base and segments (see journal), hot (see Boot, or null),
// degraded since and folded at (milliseconds since 1970, 0 for never), then the other
// fields in the order that they have here.
type Volume struct {
	// ID names the volume through deletions and creations of its name.
	ID content.VolumeID
	// Size of the disk in bytes; at least the root's.
	Size int64
	// From is what it was created from, zero for a blank disk.
	From content.Ref
	// Epoch is the number under which its holder writes; it rises with each that takes it,
	// also with those that the name had under another ID. Incarnation is the random number
	// of the start of the process that does.
	Epoch, Incarnation uint64
	Holder             trust.PublicKey
	State              VolumeState
	// Policy is what a flush waits for: see PolicyHolders.
	Policy string
	// Degrade is PolicyLocal where flushes go on without holders when those are away, else "".
	// DegradedSince is when they began to; zero while they don't.
	Degrade       string
	DegradedSince time.Time `cbor:"-"`
	// Generation is an orchestrator's own number: who comes with a lower one is late.
	Generation uint64
	ReadOnly   bool
	Folded     `cbor:"-"`
	// Holders are the members that hold all behind the last segment.
	Holders []trust.PublicKey
	// Snapshots is the number that was last given to one: none is used twice.
	Snapshots uint64
	// Rolling is the number of the snapshot that the volume is being rolled back to, which
	// is there until that is done, before anybody reads the volume; 0 is none.
	Rolling uint64
	// Shared is the seq up to which snapshots and forks may name its segments: those that
	// begin before it stay in the bucket when the record does without them.
	Shared uint64
	// IOPS and Rate, in bytes a second, bound what its users may do; 0 is no bound.
	IOPS, Rate int64
	// FsUsed is what the file system on it says that it uses, in bytes; 0 is unknown.
	FsUsed int64
	// FoldedAt is when what is in the bucket last grew; zero for never.
	FoldedAt time.Time `cbor:"-"`
}

type volumeWire struct {
	_                               struct{} `cbor:",toarray"`
	Magic                           string
	EncodedHead, Ancestors, Journal []byte
	EncodedHot                      bootWire
	Degraded, At                    int64
	Volume
}

// Encode returns the body's canonical CBOR. What no record of a volume may have is ErrInvalid.
func (v Volume) Encode(c *content.Codec) ([]byte, error) {
	b, err := v.encode(c)
	if err != nil {
		return nil, fmt.Errorf("volume: %w: %w", content.ErrInvalid, err)
	}
	return b, nil
}

// Dismiss has it name no holders where flushes don't wait for any, once all that they have is in the bucket.
func (v *Volume) Dismiss() {
	if k, _ := PolicyHolders(v.Policy); k == 0 {
		v.Holders, v.DegradedSince = nil, time.Time{}
	}
}

func (v Volume) encode(c *content.Codec) ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	w := volumeWire{Magic: volumeMagic, Degraded: millis(v.DegradedSince), At: millis(v.FoldedAt), Volume: v}
	var err error
	if w.EncodedHead, w.Ancestors, w.Journal, err = v.Folded.encode(c, v.ID, v.Size); err != nil {
		return nil, err
	}
	if v.Hot != nil && v.Head == nil {
		return nil, errors.New("a list of no root")
	}
	if v.Head != nil {
		w.EncodedHot, err = v.Hot.encodeFor(c, *v.Head)
	}
	if err == nil && len(w.EncodedHot) > HotSizeMax {
		err = fmt.Errorf("a list of %d bytes, the limit is %d", len(w.EncodedHot), HotSizeMax)
	}
	if err != nil {
		return nil, err
	}
	return c.Marshal(w)
}

func (v Volume) check() error {
	if _, err := PolicyHolders(v.Policy); err != nil {
		return err
	}
	switch {
	case v.Size <= 0 || v.Size > content.SizeMax || v.Size%content.SectorSize != 0:
		return fmt.Errorf("size %d", v.Size)
	case v.State != Attached && v.State != Released:
		return fmt.Errorf("state %.20q", v.State)
	case v.Degrade != "" && v.Degrade != PolicyLocal:
		return fmt.Errorf("degrade %.20q, want %s or nothing", v.Degrade, PolicyLocal)
	case len(v.Holders) > HoldersMax:
		return fmt.Errorf("%d holders, the limit is %d", len(v.Holders), HoldersMax)
	case min(v.IOPS, v.Rate, v.FsUsed, millis(v.DegradedSince), millis(v.FoldedAt)) < 0:
		return errors.New("a limit, a size or a time is negative")
	}
	return nil
}

// DecodeVolume reads an encoded body; anything but the one encoding of a valid one is ErrCorrupt.
func DecodeVolume(c *content.Codec, b []byte) (Volume, error) {
	var w volumeWire
	err := c.Unmarshal(b, &w)
	if err == nil && w.Magic != volumeMagic {
		err = fmt.Errorf("magic %.20q", w.Magic)
	}
	v := w.Volume
	if err == nil {
		v.Folded, err = decodeFolded(c, v.ID, w.EncodedHead, w.Ancestors, w.Journal)
	}
	if err == nil && v.Head != nil {
		v.Hot, err = w.EncodedHot.of(c, *v.Head)
	}
	v.DegradedSince, v.FoldedAt = fromMillis(w.Degraded), fromMillis(w.At)
	if err == nil {
		err = isEncodingOf(v.encode, c, b)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("volume: %w: %w", content.ErrCorrupt, err)
	}
	return v, nil
}

// isEncodingOf fails unless b is what encode makes: what is decoded is checked by the
// same rules as what is encoded, and has one form.
func isEncodingOf(encode func(*content.Codec) ([]byte, error), c *content.Codec, b []byte) error {
	again, err := encode(c)
	if err == nil && !bytes.Equal(again, b) {
		err = errors.New("not the canonical encoding")
	}
	return err
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
