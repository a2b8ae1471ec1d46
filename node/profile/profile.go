// Package profile finds out what of an image its boots read: it boots it here in machines that are thrown away, asks the other
// members what their guests have read, and has the image laid out by that.
package profile

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/boots/merge"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// runsDefault is how often an image is booted of which nothing is said: a second boot reads the same but for a percent.
	runsDefault = 1
	// RunsMax is how often it is booted at most. More tell nothing new, and the fleet's own boots tell more than they do.
	RunsMax = 3
	// timeoutMax bounds each of the times of a Spec.
	timeoutMax = terms.Seconds(3600)
	// kind is what the operation is called.
	kind = "profile"
)

// Config is what Profiles are built from.
type Config struct {
	// Dir is the node's data folder.
	Dir        string
	Images     *images.Images
	Names      *records.Names
	Operations *operations.Operations
	// Emulator is how machines are run, as in qemu's -accel.
	Emulator string
	// Traces returns what boots on this node have read of a root, by boot: chunks in the order of first touch. Booted keeps one
	// more, of a machine that was thrown away.
	Traces func(root content.CID) [][]uint64
	Booted func(root content.CID, trace []uint64)
	// Members returns the members that are connected and may read content of a scope, by ID, this one left out; Call asks one.
	Members func(scope content.Scope) []string
	Call    func(ctx context.Context, id, method string, body []byte) ([]byte, error)
	// LayOut lays an image out anew by a list of its root, and writes its record with both.
	LayOut func(ctx context.Context, op images.Updater, name string, list *catalog.Boot) error
	// Writable returns the origin, or why nothing can be written to it.
	Writable func() (bucket.Bucket, error)
	Signer   trust.Signer
	Codec    *content.Codec
	Now      func() time.Time
	Log      *slog.Logger
}

// Spec says how an image is booted.
type Spec struct {
	Runs    *int          `json:"runs,omitempty" minimum:"0" maximum:"3" doc:"how often it is booted on this node, in machines that are thrown away: once when not given; 0 takes what members have recorded alone"`
	Memory  int64         `json:"memory,omitempty" minimum:"0" doc:"bytes that the machine has; 1 GiB when not given"`
	CPUs    int           `json:"cpus,omitempty" minimum:"0" maximum:"256" doc:"one when not given"`
	Kernel  string        `json:"kernel,omitempty" maxLength:"512" doc:"a kernel on the node's host that is booted, with initrd and append, in place of what the disk has for that"`
	Initrd  string        `json:"initrd,omitempty" maxLength:"512" doc:"what that is given as its first disk"`
	Append  string        `json:"append,omitempty" maxLength:"512" doc:"and as its command line"`
	Timeout terms.Seconds `json:"timeout_seconds,omitempty" minimum:"0" maximum:"3600" doc:"how long a boot may take: five minutes when not given; what was read until then counts"`
	Quiet   terms.Seconds `json:"quiet_seconds,omitempty" minimum:"0" maximum:"3600" doc:"a boot is over when it asks for a login on its console, or has read nothing new for so long: a minute when not given"`
}

// WithDefaults checks what is asked for; ErrInvalid says what is wrong.
func (s Spec) WithDefaults() (Spec, error) {
	if s.Runs == nil {
		s.Runs = new(runsDefault)
	}
	switch {
	case *s.Runs < 0 || *s.Runs > RunsMax:
		return s, fmt.Errorf("%d runs: %w: want 0 to %d", *s.Runs, content.ErrInvalid, RunsMax)
	case s.Kernel == "" && s.Initrd+s.Append != "", s.Kernel != "" && !filepath.IsAbs(s.Kernel), s.Initrd != "" && !filepath.IsAbs(s.Initrd):
		return s, fmt.Errorf("%w: initrd and append come with a kernel, as absolute paths on the node's host", content.ErrInvalid)
	case s.Memory < 0, s.CPUs < 0, s.Timeout < 0, s.Timeout > timeoutMax, s.Quiet < 0, s.Quiet > timeoutMax:
		return s, fmt.Errorf("%w: want memory and cpus of 0 or more, and times of 0 to %v seconds", content.ErrInvalid, timeoutMax)
	}
	return s, nil
}

// Profiles make lists of what boots want. Safe for concurrent use.
type Profiles struct {
	cfg  Config
	boot chan struct{} // has one while an image is booted: one at a time, as each takes memory of the host's
}

// New builds Profiles.
func New(cfg Config) *Profiles { return &Profiles{cfg, make(chan struct{}, 1)} }

// Begin finds out what boots of an image read, and has it laid out by that, in the background. What can be known at once is
// refused at once; one that is at an image already is ErrConflict.
func (p *Profiles) Begin(name string, s Spec) (operations.View, error) {
	s, err := s.WithDefaults()
	if err == nil {
		err = content.KindImage.CheckName(name)
	}
	if err == nil {
		err = p.may(content.Mesh())
	}
	if err != nil {
		return operations.View{}, fmt.Errorf("profile %q: %w", name, err)
	}
	return p.cfg.Operations.Start(kind, name, func(ctx context.Context, op *operations.Operation) error {
		if err := p.profile(budget.With(ctx, budget.NewTurn(budget.Prefetch, kind)), op, name, s); err != nil { // guests go first at the origin
			return fmt.Errorf("profile %q: %w", name, err)
		}
		return nil
	})
}

// may fails unless this node may publish images of a scope, and can.
func (p *Profiles) may(scope content.Scope) error {
	if id := p.cfg.Signer.Identity(); !id.MaySign(content.KindImage, scope.Farm()) || !id.MayRead(scope) {
		return fmt.Errorf("%w: an image of scope %s is laid out by a publisher or admin that may read it; this node's role is %s, its farm %q", content.ErrForbidden, scope, id.Role, id.Farm)
	}
	_, err := p.cfg.Writable()
	return err
}

func (p *Profiles) profile(ctx context.Context, op *operations.Operation, name string, s Spec) error {
	root, err := p.cfg.Images.Stands(ctx, content.Ref{Kind: content.KindImage, Name: name})
	if err == nil && slices.ContainsFunc(root.As, func(r content.Ref) bool { return r.Kind == content.KindTag }) {
		err = fmt.Errorf("%w: it is a tag; profile the image that it stands for", content.OtherKind)
	}
	if err == nil {
		err = p.may(root.Head.Scope)
	}
	if err != nil {
		return err
	}
	image, err := p.cfg.Images.Image(ctx, root)
	if err != nil {
		return err
	}
	var said []string
	traces, err := p.runs(ctx, op, image, s, &said)
	if err != nil {
		return err
	}
	own := p.cfg.Traces(image.ID())
	for _, trace := range traces {
		p.cfg.Booted(image.ID(), trace)
	}
	others := p.ask(ctx, image.ID(), root.Head.Scope)
	list := merge.Merge(image.ID(), p.cfg.Now(), within(image.Root().Shape(), slices.Concat(traces, own, others)))
	if list == nil {
		return fmt.Errorf("%w: no member has recorded a boot of what it stands for now: have it booted here, with `grange image profile %s --runs 1`", content.ErrNotFound, name)
	}
	said = append([]string{fmt.Sprintf("%d chunks; boots: %d for this, %d kept on this node before, %d of other members'", list.Chunks(), len(traces), len(own), len(others))}, said...)
	op.Update(func(v *operations.View) { v.Unit, v.Done, v.Note = "", 0, strings.Join(said, "\n") })
	return p.cfg.LayOut(ctx, op, name, list)
}

// runs boots an image as often as is wanted, and returns what each boot has read; said gets what is to be known of them.
func (p *Profiles) runs(ctx context.Context, op *operations.Operation, image *fetch.Image, s Spec, said *[]string) (traces [][]uint64, err error) {
	if *s.Runs == 0 {
		return nil, nil
	}
	op.Update(func(v *operations.View) { v.Unit, v.Note = "chunks", "waiting until another image is booted" })
	select {
	case p.boot <- struct{}{}:
		defer func() { <-p.boot }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for n := range *s.Runs {
		run := fmt.Sprintf("run %d of %d", n+1, *s.Runs)
		trace, notes, err := p.run(ctx, image, s, func(touched int) {
			op.Update(func(v *operations.View) {
				v.Done, v.Note = int64(touched), fmt.Sprintf("%s: %d chunks so far", run, touched)
				image.Bytes().Each(func(source string, n int64) { v.Bytes[source] = n })
			})
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", run, err)
		}
		traces = append(traces, trace)
		for _, note := range notes {
			*said = append(*said, run+": "+note)
		}
	}
	return traces, nil
}

// within is what of traces is inside a shape: who has recorded them may say anything.
func within(shape content.Shape, traces [][]uint64) (out [][]uint64) {
	for _, trace := range traces {
		out = append(out, slices.DeleteFunc(slices.Clone(trace), func(chunk uint64) bool { return chunk >= shape.Chunks }))
	}
	return out
}
