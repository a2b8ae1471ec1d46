// Package soak says how long the long loops of tests go on: a few rounds in CI, as
// many as it takes to find what happens seldom in `make soak`.
package soak

import "os"

// rounds is what CI has time for.
const rounds = 5

// Full reports whether the full counts are wanted: GRANGE_SOAK is set.
func Full() bool { return os.Getenv("GRANGE_SOAK") != "" }

// Rounds returns how often a loop runs that goes on for full rounds in a soak.
func Rounds(full int) int {
	if Full() {
		return full
	}
	return min(full, rounds)
}
