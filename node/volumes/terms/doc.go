// Package terms has the words in which volumes are asked for and described: what a caller
// may want, what it is told of a volume or a snapshot, and who has it when it can't be had.
// It is pure.
package terms
