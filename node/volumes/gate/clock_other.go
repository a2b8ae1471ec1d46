//go:build !linux

package gate

import "time"

// boottime goes on while the process is stopped.
func boottime() time.Duration { return time.Duration(time.Now().Round(0).UnixNano()) }
