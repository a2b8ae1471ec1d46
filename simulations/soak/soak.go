// Package soak says how long the long loops of tests go on: a few rounds in CI, as
// many as it takes to find what happens seldom in `make soak`. It alone looks at the
// environment for that.
package soak

import "os"

// rounds is what CI has time for.
const rounds = 5

// Off, in the environment of a process, has it run a few rounds.
const Off = "GRANGE_SOAK="

// Full reports whether the full counts are wanted: GRANGE_SOAK is set.
func Full() bool { return os.Getenv("GRANGE_SOAK") != "" }

// Of returns few in CI, and many in a soak.
func Of[T any](few, many T) T {
	if Full() {
		return many
	}
	return few
}

// Rounds returns how often a loop runs that goes on for full rounds in a soak.
func Rounds(full int) int { return Of(min(full, rounds), full) }
