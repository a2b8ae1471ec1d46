package vm

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// initScript is the first program of a guest, by go:embed.
//
//go:embed init.sh
var initScript string

// accelVariable may name another accelerator of qemu than its emulation. KVM is
// not found out: where it is nested it may be there, and hang.
const accelVariable = "GRANGE_VM_ACCEL"

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
	modules, err := filepath.Glob(filepath.Join(h.kernel, "*.ko"))
	if err != nil {
		return err
	}
	for _, module := range modules {
		a.copy(path.Join("modules", filepath.Base(module)), module)
	}
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

// machine is the part of qemu's command line that all guests have.
func (h host) machine(c Config, initrd string) []string {
	// A busy machine gives an emulated one no ticks when it counts them to check its timer,
	// and a kernel that waits for grace periods has nobody to wait for here.
	// The emulation of CMPXCHG16B by the qemu of Debian 12 corrupts the guest. What guards a
	// kernel from its users costs an emulated processor a third of its time.
	args := []string{"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none",
		"-M", "q35", "-accel", cmp.Or(os.Getenv(accelVariable), "tcg"), "-cpu", "max,-cx16,-la57,-smap,-smep",
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMiB),
		"-kernel", filepath.Join(h.kernel, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 oops=panic no_timer_check rcupdate.rcu_expedited=1 " +
			"mitigations=off init_on_alloc=0 nokaslr randomize_kstack_offset=off audit=0"}
	for i, disk := range slices.Concat([]string{h.tools}, c.Disks, c.Served) {
		readonly := "on"
		if i > len(c.Disks) {
			readonly = "off"
		}
		// A comma in a value is written twice.
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=disk%d,readonly=%s", strings.ReplaceAll(disk, ",", ",,"), i, readonly),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return args
}
