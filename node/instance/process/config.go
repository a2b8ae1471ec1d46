// Package process runs a workload as a process of this host that outlives the node which has started it, and finds it
// again: by a descriptor of it, when it began, and which boot of the host that was. A number alone may be another's.
package process

// ID tells a process from all others that this host has, had, and will have.
type ID struct {
	PID int `json:"pid"`
	// Began is when it was started, in the kernel's ticks since the boot, whose ID is Boot.
	Began uint64 `json:"began"`
	Boot  string `json:"boot"`
}

// Config says what to start.
type Config struct {
	// Command is the program, looked for in the PATH of Env, and its arguments.
	Command []string
	// Dir is where it works.
	Dir string
	// Env is all of its environment, as NAME=VALUE.
	Env []string
	// User has it run as another, by name or number; "" is as the node.
	User string
	// Limits of resources, by their names in limits.conf(5).
	Limits map[string]uint64
	// Log is the file that what it says is added to.
	Log string
	// Cgroup is the folder of a control group that it begins in; "" is the node's own.
	Cgroup string
}
