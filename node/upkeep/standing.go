package upkeep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/garbage/check"
)

// View is how the upkeep of the origin stands, as far as this node knows.
type View struct {
	Collections Collections `json:"gc"`
	Checks      Checks      `json:"verify"`
}

// Standing is how it stands with what is done at intervals.
type Standing struct {
	Every float64   `json:"every_seconds" doc:"how often it is done by itself; 0: never"`
	Due   time.Time `json:"due,omitzero" doc:"when it is due next; absent while that is not known, as on a node that may not do it"`
	Ended time.Time `json:"ended,omitzero" doc:"when the last one ended that this node knows of and that went well"`
	Error string    `json:"error,omitempty" doc:"why the last one failed"`
}

// Collections is how it stands with the collections of garbage of the mesh.
type Collections struct {
	Standing
	Last   *garbage.Summary `json:"last,omitempty" doc:"what the last one did, whichever node it was"`
	Report *garbage.Report  `json:"report,omitempty" doc:"of the last one of this node; dry ones do not count"`
}

// Checks is how it stands with the checks of this node: at intervals it reads a part of the chunks.
type Checks struct {
	Standing
	Report *check.Report `json:"report,omitempty" doc:"of the last whole one"`
}

// stands is what this node knows.
type stands struct {
	mu     sync.Mutex // guards all below
	gc     Collections
	freed  int64  // bytes, since this node's start
	checks Checks // of the last whole one, whoever asked for it
	last   checked
}

// View says how the upkeep stands.
func (u *Upkeep) View() View {
	u.mu.Lock()
	defer u.mu.Unlock()
	v := View{u.gc, u.checks}
	v.Collections.Every, v.Checks.Every = u.cfg.CollectEvery.Seconds(), u.cfg.VerifyEvery.Seconds()
	return v
}

// collected notes what a run of this node has done.
func (u *Upkeep) collected(report garbage.Report) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gc.Report = &report
	u.freed += report.Deleted.Bytes + report.Repacked.Bytes
}

// notCollected notes why no garbage was collected when that was due, unless another node is at it, or somebody did not want it any more.
func (u *Upkeep) notCollected(err error) {
	if errors.Is(err, content.Running) || errors.Is(err, content.ErrFenced) || errors.Is(err, context.Canceled) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gc.Error = content.Line(err)
}

// collectedBy notes what the record of the collections says, and when the next is due.
func (u *Upkeep) collectedBy(last catalog.Collection, due time.Time) {
	var said garbage.Summary
	err := json.Unmarshal(last.Report, &said)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cfg.CollectEvery > 0 {
		u.gc.Due = due
	}
	if last.Ended == 0 || err != nil || u.gc.Last != nil && u.gc.Last.Epoch == said.Epoch {
		return
	}
	if u.gc.Error, u.gc.Last = said.Error, &said; said.Error == "" {
		u.gc.Ended = last.EndedAt()
	}
}

// namesShown bounds the names that a warning has.
const namesShown = 4

// Warn says what is amiss, and what it is about.
func (u *Upkeep) Warn(warn func(about, format string, args ...any)) {
	v := u.View()
	gc, checks := v.Collections, v.Checks
	switch {
	case gc.Error != "":
		warn("origin gc", "the last collection of garbage at the origin has failed: %s", gc.Error)
	case gc.Last != nil && gc.Last.Broken > 0:
		warn("origin gc", "what names at the origin stand for can't be read (%d), and nothing that they may hold is deleted; `grange origin gc --dry-run` says which, and why", gc.Last.Broken)
	}
	switch {
	case checks.Report != nil && checks.Report.HurtNames > 0:
		warn("origin verify", "names at the origin are hurt (%d): %s; import again what they are of, or restore it from a copy, and look with `grange origin verify`", checks.Report.HurtNames, some(checks.Report.Hurt, hurtName))
	case checks.Error != "":
		warn("origin verify", "the origin was not checked when that was due: %s", checks.Error)
	}
}

// some names a few.
func some[T any](all []T, name func(T) string) string {
	var names []string
	for _, v := range all[:min(len(all), namesShown)] {
		names = append(names, name(v))
	}
	if more := len(all) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}
