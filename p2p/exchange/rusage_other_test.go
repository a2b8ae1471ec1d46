//go:build !unix

package exchange

// cpuSeconds is not measured here.
func cpuSeconds() float64 { return 0 }
