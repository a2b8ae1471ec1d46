// Package vm runs programs in a virtual machine with a Linux kernel that has
// ublk and nbd, whatever the kernel of this one. Debian's cloud kernels boot in
// seconds under qemu, emulated unless GRANGE_VM_ACCEL is kvm, from an initial RAM
// disk made for each run; fio, e2fsprogs, nbdkit and others come as this machine's
// own, on a disk. It needs no root, leaves nothing behind, and machines may run
// side by side. Speed inside tells nothing but ratios.
package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// Config is one run. Paths of the guest are relative to its working folder,
// /guest, which is in memory, as is all else that can be written there.
type Config struct {
	Binary  string            // program on this machine; its libraries, if any, are those of the tools
	Args    []string          // without the name of the program
	Env     []string          // key=value, beside PATH, HOME and TMPDIR
	Files   map[string]string // path in the guest → file or folder on this machine
	Disks   []string          // raw images on this machine, read-only: /dev/vdb and on
	Served  []string          // NBD URIs of disks that may be written, after Disks
	Output  io.Writer         // what the program prints, as it does; nil drops it
	Timeout time.Duration     // of the whole run; 0 is timeoutDefault

	MemoryMiB int // 0 is memoryDefault
	CPUs      int // 0 is cpusDefault
	// Newest has it boot the newest kernel that Debian has, not that of Debian 13,
	// 6.12, on which users run it.
	Newest bool

	// Prepare, for Main, completes the rest before a guest boots, with a folder
	// for files that it makes.
	Prepare func(ctx context.Context, dir string, c *Config) error

	begin time.Duration // how long a try to boot may take; 0 is beginDefault
}

const (
	timeoutDefault = 2 * time.Minute
	memoryDefault  = 1024
	cpusDefault    = 2
	// disksMax keeps the letters of disks single.
	disksMax = 20
)

// ErrNoStatus says that the guest ended, or was ended, before its program did.
var ErrNoStatus = errors.New("no exit status from the guest")

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, timeoutDefault)
	c.MemoryMiB = cmp.Or(c.MemoryMiB, memoryDefault)
	c.CPUs = cmp.Or(c.CPUs, cpusDefault)
	c.begin = cmp.Or(c.begin, beginDefault)
	if c.Output == nil {
		c.Output = io.Discard
	}
	return c
}

func (c Config) validate() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("virtual machines on %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	if n := len(c.Disks) + len(c.Served); n > disksMax {
		return fmt.Errorf("%d disks, the limit is %d", n, disksMax)
	}
	for _, kv := range c.Env {
		if !variable.MatchString(kv) {
			return fmt.Errorf("environment %q is not key=value, or the shell takes no such key", kv)
		}
	}
	return nil
}

// script is what the guest's shell runs: the environment, and the program in
// its place.
func (c Config) script() string {
	var b strings.Builder
	for _, kv := range c.Env {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "export %s=%s\n", key, quote(value))
	}
	b.WriteString("exec ./program")
	for _, arg := range c.Args {
		b.WriteString(" " + quote(arg))
	}
	return b.String() + "\n"
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
