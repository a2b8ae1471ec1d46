// Package terms has the words in which volumes are asked for and described: what a caller may want,
// what it is told of a volume or a snapshot, and who has it when it can't be had. It is pure.
package terms

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// The transports that a volume may be served over. Auto is UBLK where the kernel has it.
const (
	NBD  = "nbd"
	UBLK = "ublk"
	Auto = "auto"
)

// noDegrade is what Spec.Degrade says of a volume whose flushes are to wait for its holders.
const noDegrade = "none"

// Durable is what SnapshotSpec.Wait may say.
const Durable = "durable"

// Limits bound what clients get of a volume, all of them together; 0 is no limit.
type Limits struct {
	IOPS           int64 `json:"iops" minimum:"0" doc:"requests a second; 0: no limit"`
	BytesPerSecond int64 `json:"bytes_per_second" minimum:"0" doc:"0: no limit"`
}

// Spec is what a Put asks for; zero fields ask for nothing.
type Spec struct {
	// ID is that of the volume which is meant, or is to be made: another of the name is a conflict.
	ID         content.VolumeID `json:"-"`
	Size       int64            `json:"size,omitempty" doc:"bytes; the image's when not given"`
	From       content.Ref      `json:"from,omitzero" doc:"image:NAME, volume:NAME, volume:NAME?at=folded or snapshot:NAME@N; a blank disk when not given"`
	Transport  string           `json:"transport,omitempty" enum:"auto,nbd,ublk"`
	Durability string           `json:"durability,omitempty" doc:"what a flush means: local, which it is when not given, farm:K or origin; of a volume that exists: from now on"`
	Degrade    string           `json:"degrade,omitempty" enum:"local,none" doc:"with farm:K: local lets flushes go on without the holders, once the record says so; none takes that back"`
	ReadOnly   bool             `json:"readonly,omitempty" doc:"of a volume that exists and that this node does not have: read it as the bucket has it now, beside whoever writes it"`
	Takeover   bool             `json:"takeover,omitempty" doc:"attach it although another node holds it; what that one has not folded stays behind as a snapshot"`
	Generation uint64           `json:"generation,omitempty" doc:"an orchestrator's own count: a request with a lower one than the volume has seen is a conflict"`
	Limits     Limits           `json:"limits,omitzero"`
}

// Reads reports whether all that is asked for is to read a volume that exists.
func (s Spec) Reads() bool {
	return s.ReadOnly && !s.Takeover && s.Size == 0 && s.From == (content.Ref{})
}

// WithDefaults checks what is asked for; ErrInvalid says what is wrong.
func (s Spec) WithDefaults() (Spec, error) {
	switch s.Transport {
	case "", Auto, NBD, UBLK:
		s.Transport = cmp.Or(s.Transport, Auto)
	default:
		return s, fmt.Errorf("transport %.20q: %w: want auto, ublk or nbd", s.Transport, content.ErrInvalid)
	}
	if s.Durability != "" {
		if _, err := catalog.PolicyHolders(s.Durability); err != nil {
			return s, err
		}
	}
	if s.Reads() && s.Durability+s.Degrade != "" {
		return s, fmt.Errorf("%w: what a flush means is of no use to one that is read-only: leave durability and degrade out", content.ErrInvalid)
	}
	if !slices.Contains([]string{"", catalog.PolicyLocal, noDegrade}, s.Degrade) {
		return s, fmt.Errorf("degrade %.20q: %w: want local or none", s.Degrade, content.ErrInvalid)
	}
	if err := limit.Limits(s.Limits).Check(); err != nil {
		return s, err
	}
	if s.Size < 0 || s.Size > content.SizeMax || s.Size%content.SectorSize != 0 {
		return s, fmt.Errorf("size %d: %w: want a multiple of %d up to %d", s.Size, content.ErrInvalid, content.SectorSize, int64(content.SizeMax))
	}
	return s, nil
}

// NewID is that of the volume which it makes.
func (s Spec) NewID() content.VolumeID {
	if s.ID == (content.VolumeID{}) {
		rand.Read(s.ID[:])
	}
	return s.ID
}

// means reports whether a volume is the one that is meant; the zero ID means any.
func means(id, is content.VolumeID) bool { return id == is || id == content.VolumeID{} }

// Agrees fails with content.Differs when it asks for something else than the volume is.
func (s Spec) Agrees(body catalog.Volume) error {
	switch {
	case !means(s.ID, body.ID):
		return fmt.Errorf("%w: another volume has the name, and is not the one that is meant: choose another name, with --from volume:NAME if it is to have what that one has", content.Differs)
	case s.From != (content.Ref{}) && s.From != body.From:
		return fmt.Errorf("%w: it was created from %q, not from %q; choose another name, or remove it first", content.Differs, body.From, s.From)
	case s.Size != 0 && s.Size != body.Size:
		return fmt.Errorf("%w: it has %d bytes, not %d; `grange volume resize` makes it larger", content.Differs, body.Size, s.Size)
	}
	return nil
}

// Change has the record say what an attach asks for, unless that is Stale, or ErrInvalid for its policy.
func (s Spec) Change(body *catalog.Volume) error {
	if s.Generation != 0 && s.Generation < body.Generation {
		return Stale(body.Generation, s.Generation)
	}
	policy := cmp.Or(s.Durability, body.Policy)
	if k, err := catalog.PolicyHolders(policy); err == nil && k == 0 && s.Degrade == catalog.PolicyLocal {
		return fmt.Errorf("%w: degrade is of use with durability farm:K, and this is %s", content.ErrInvalid, policy)
	}
	body.Policy = policy
	if s.Degrade != "" {
		body.Degrade = strings.TrimSuffix(s.Degrade, noDegrade)
	}
	if s.Limits != (Limits{}) {
		body.IOPS, body.Rate = s.Limits.IOPS, s.Limits.BytesPerSecond
	}
	body.Generation = max(body.Generation, s.Generation)
	return nil
}

// SnapshotSpec is what a snapshot is asked for with.
type SnapshotSpec struct {
	// Label is the caller's own.
	Label string
	// Wait is "durable" for a call that returns when the snapshot is, else "".
	Wait string
}

// RemoveSpec is how a volume is removed.
type RemoveSpec struct {
	Force bool // although it is in use, or its node is away
	Purge bool // its snapshots too
	// ID is that of the volume which is meant: another of the name stays.
	ID content.VolumeID
}

// Means reports whether a volume is to go.
func (s RemoveSpec) Means(id content.VolumeID) bool { return means(s.ID, id) }

// PromoteSpec is what a volume or a snapshot becomes.
type PromoteSpec struct {
	Image   string        `json:"image" maxLength:"255" doc:"the image's name"`
	Scope   content.Scope `json:"scope,omitzero" doc:"who may read it: public, mesh, which it is when not given, or farm/NAME"`
	Replace bool          `json:"replace,omitempty" doc:"publish a new version of an image that exists"`
}

// Progress is told how many bytes of long work are done, and of how many; 0 is unknown.
type Progress func(done, total int64)
