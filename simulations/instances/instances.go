// Package instances tests what nodes run for others: real workloads on real nodes, which are killed, and move.
package instances
