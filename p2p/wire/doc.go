// Package wire holds the frames of the exchange protocol: how members ask each
// other for chunks. It is pure: no connection, no clock, no goroutine.
package wire
