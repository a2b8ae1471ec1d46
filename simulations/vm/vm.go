// Package vm runs programs in a virtual machine with a Linux kernel that has
// ublk and nbd, whatever the kernel of this one. Debian's cloud kernel boots in
// seconds under qemu, emulated unless GRANGE_VM_ACCEL is kvm, from an initial RAM
// disk made for each run; fio, e2fsprogs, nbdkit and others come as this machine's
// own, on a disk. It needs no root, leaves nothing behind, and machines may run
// side by side. Speed inside tells nothing but ratios.
package vm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
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
	Output  io.Writer         // what the program prints, as it does; nil drops it
	Timeout time.Duration     // of the whole run; 0 is timeoutDefault

	MemoryMiB int // 0 is memoryDefault
	CPUs      int // 0 is cpusDefault
}

const (
	timeoutDefault = 2 * time.Minute
	memoryDefault  = 1024
	cpusDefault    = 2
	// accelVariable may name another accelerator of qemu. KVM is not found out: where
	// it is nested it may be there, and hang.
	accelVariable = "GRANGE_VM_ACCEL"
	// disksMax keeps the letters of disks single.
	disksMax = 20
)

// ErrNoStatus says that the guest ended, or was ended, before its program did.
var ErrNoStatus = errors.New("no exit status from the guest")

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, timeoutDefault)
	c.MemoryMiB = cmp.Or(c.MemoryMiB, memoryDefault)
	c.CPUs = cmp.Or(c.CPUs, cpusDefault)
	if c.Output == nil {
		c.Output = io.Discard
	}
	return c
}

func (c Config) validate() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("virtual machines on %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)
	}
	if len(c.Disks) > disksMax {
		return fmt.Errorf("%d disks, the limit is %d", len(c.Disks), disksMax)
	}
	for _, kv := range c.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" || strings.ContainsAny(key, " '\"$;&|()<>\n") {
			return fmt.Errorf("environment %q is not key=value", kv)
		}
	}
	return nil
}

// host is what all guests share on this machine.
type host struct {
	busybox string
	kernel  string // folder with vmlinuz and modules
	tools   string // disk that becomes /usr
}

// initrd writes the initial RAM disk; the script, in /guest, is what init runs.
func (h host) initrd(w io.Writer, c Config, script, text string) error {
	a := newArchive(w)
	a.text("init", initScript)
	a.copy("applets/busybox", h.busybox)
	a.copy("modules", h.kernel)
	for _, name := range []string{"proc", "sys", "dev", "tmp", "run", "usr", "mnt", "root", "var", "etc"} {
		a.dir(name)
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		a.symlink(name, "usr/"+name)
	}
	a.text("etc/passwd", "root:x:0:0::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n")
	a.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
	a.text("etc/hosts", "127.0.0.1 localhost\n")
	a.symlink("etc/mtab", "/proc/mounts")
	a.text(path.Join("guest", script), text)
	if c.Binary != "" {
		a.copy("guest/program", c.Binary)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Files)) {
		a.copy(path.Join("guest", name), c.Files[name])
	}
	return a.close()
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

// machine is the part of qemu's command line that all guests have.
func (h host) machine(c Config, initrd string) []string {
	// The emulation of CMPXCHG16B by the qemu of Debian 12 corrupts the guest.
	args := []string{"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none",
		"-M", "q35", "-accel", cmp.Or(os.Getenv(accelVariable), "tcg"), "-cpu", "max,-cx16",
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMiB),
		"-kernel", path.Join(h.kernel, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 oops=panic"}
	for i, disk := range append([]string{h.tools}, c.Disks...) {
		// A comma in a value is written twice.
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=disk%d,readonly=on", strings.ReplaceAll(disk, ",", ",,"), i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return args
}

// lastWords returns the end of what the kernel printed.
func lastWords(console []byte) string {
	const most = 8 << 10 // a stack or two
	console = bytes.TrimSpace(console[max(0, len(console)-most):])
	if len(console) == 0 {
		return "its kernel printed nothing"
	}
	return "its kernel's last words:\n" + string(bytes.ReplaceAll(console, []byte("\r"), nil))
}
