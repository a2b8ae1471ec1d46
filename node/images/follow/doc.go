// Package follow decides what a node keeps warm that follows names: which of what the
// names stand for it fetches and when, what it keeps for that, what it lets go, and what
// it says of each. It has no clock, no goroutine and no I/O: a caller feeds events to a
// State and carries out the actions that it answers with.
package follow
