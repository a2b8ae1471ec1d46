package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/images/follow"
)

// followFlags are of the commands that keep names warm.
type followFlags struct {
	Follow []follow.Pattern `help:"Keep these images warm: fetched, kept, and brought up to date when the name stands for another. A pattern is a name with *, ? or [a-z]." placeholder:"image:NAME,tag:TAG,PATTERN,…"`
}

// Validate refuses more than a node can look after.
func (f *followFlags) Validate() error {
	if len(f.Follow) > follow.PatternsMax {
		return fmt.Errorf("--follow: %d names and patterns; a node follows %d at most, of which one with * may stand for many", len(f.Follow), follow.PatternsMax)
	}
	return nil
}

// followed says how a name stands that this node follows: "" for one that it does not.
func followed(s *follow.Standing) string {
	if s == nil {
		return ""
	}
	out := string(s.State)
	if s.State == follow.Fetching && s.Total > 0 {
		out += fmt.Sprintf(" %d %%", 100*s.Done/s.Total)
	}
	if !s.Next.IsZero() && s.Next.After(time.Now()) {
		out += " till " + ask.Moment(s.Next)
	}
	if s.Older {
		out += ", an older version is kept"
	}
	return out
}

// followedLines are those of `grange status`.
func followedLines(w io.Writer, f *images.Followed) {
	if f == nil {
		return
	}
	fmt.Fprintf(w, "follows\t%s: %s", strings.Join(f.Patterns, ", "), ask.Count(f.Names, "name"))
	for _, state := range slices.Sorted(maps.Keys(f.States)) {
		fmt.Fprintf(w, ", %d %s", f.States[state], state)
	}
	fmt.Fprintln(w)
	for _, p := range f.Missing {
		fmt.Fprintf(w, "\t%s: no such name is known\n", p)
	}
	for _, s := range f.Behind {
		fmt.Fprintf(w, "\t%s: %s%s%s\n", s.Name, followed(&s), ask.BySource(s.Bytes), ask.Prefixed(": ", s.Why))
	}
	if shown := len(f.Behind) + f.States[follow.Warm]; shown < f.Names {
		fmt.Fprintf(w, "\tand %d more\n", f.Names-shown)
	}
}
