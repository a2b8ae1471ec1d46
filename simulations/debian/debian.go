// Package debian makes the disk image that demonstrations, tests and benchmarks
// boot: Debian bookworm with a cloud kernel, systemd and a login on the serial
// console, as an ext4 file system without a partition table.
package debian

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content/durable"
)

// Image is what is needed to boot: a raw disk, and the kernel and initial RAM
// disk that are given to qemu beside it.
type Image struct {
	Root   string // the folder that the disk was made of
	Disk   string
	Kernel string
	Initrd string
}

// buildTimeout is how long another may take to make it.
const buildTimeout = 20 * time.Minute

// script makes the image, by go:embed.
//
//go:embed build.sh
var script string

// Build makes the image in dir, or finds the one made there before. It needs
// root and debootstrap, and takes minutes the first time; log gets what the
// tools say.
func Build(ctx context.Context, dir string, log io.Writer) (Image, error) {
	img := Image{filepath.Join(dir, "root"), filepath.Join(dir, "debian.img"), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	lock, err := durable.LockWithin(ctx, filepath.Join(dir, "lock"), buildTimeout) // tests of several packages want it at once
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	if _, err := os.Stat(img.Disk); err == nil {
		return img, nil
	}
	if os.Geteuid() != 0 {
		return Image{}, errors.New("making a Debian image needs root: debootstrap creates devices and owners")
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "build.sh", dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return Image{}, fmt.Errorf("make a Debian image in %s: %w", dir, err)
	}
	return img, nil
}

// Command returns a qemu that boots the image from drive, a file or an NBD URI,
// with the console on its standard output. Guest writes reach the drive.
func (img Image) Command(ctx context.Context, drive string) *exec.Cmd {
	return exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "1024",
		"-kernel", img.Kernel, "-initrd", img.Initrd, "-append", strings.Join([]string{"root=/dev/vda", "rw", "console=ttyS0", "net.ifnames=0"}, " "),
		"-drive", "file="+drive+",format=raw,if=virtio,cache=none,aio=threads,discard=unmap", "-device", "virtio-rng-pci")
}

// LoginPrompt ends the boot: the console prints it when the system is up.
const LoginPrompt = "login: "
