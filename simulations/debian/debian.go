// Package debian makes the disk images that demonstrations, tests and benchmarks
// boot: Debian bookworm with a cloud kernel, systemd and a login on the serial
// console.
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

// Kind is what an image is for.
type Kind string

const (
	// Server has what most servers have, as an ext4 file system without a partition
	// table; kernel and initial RAM disk are given to qemu beside it.
	Server Kind = "server"
	// Cloud is made as clouds' images are: with a table of partitions, GRUB, kernel and
	// initial RAM disk on the disk, and cloud-init.
	Cloud Kind = "cloud"
	// Cluster is a node of Kubernetes', on a disk like Cloud's: containerd and etcd run,
	// and bridge and rules are made, before the prompt comes.
	Cluster Kind = "cluster"
)

// Image is what is needed to boot: a raw disk, and the kernel and initial RAM
// disk that are given to qemu beside it, "" where they are on the disk.
type Image struct {
	Root   string // the folder that the disk was made of
	Disk   string
	Kernel string
	Initrd string
}

// buildTimeout is how long another may take to make it.
const buildTimeout = 20 * time.Minute

// bootTimeout bounds a boot: half a minute to one and a half where the processor is emulated and idle.
const bootTimeout = 6 * time.Minute

// script makes the image, by go:embed.
//
//go:embed build.sh
var script string

// Build makes a Server's image in dir, or finds the one made there before. It needs
// root and debootstrap, and takes minutes the first time; log gets what the
// tools say.
func Build(ctx context.Context, dir string, log io.Writer) (Image, error) {
	return BuildKind(ctx, Server, dir, log)
}

// BuildKind is Build of an image of any kind, in a folder of its own.
func BuildKind(ctx context.Context, kind Kind, dir string, log io.Writer) (Image, error) {
	img := Image{Root: filepath.Join(dir, "root"), Disk: filepath.Join(dir, "debian.img")}
	if kind == Server {
		img.Kernel, img.Initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
	}
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
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "build.sh", dir, string(kind))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return Image{}, fmt.Errorf("make a Debian image in %s: %w", dir, err)
	}
	return img, nil
}

// KernelArguments are those of a kernel that is given to qemu.
const KernelArguments = "root=/dev/vda rw console=ttyS0 net.ifnames=0"

// Command returns a qemu that boots the image from drive, a file or an NBD URI,
// with the console on its standard output. Guest writes reach the drive.
func (img Image) Command(ctx context.Context, drive string) *exec.Cmd {
	args := []string{
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "1024",
		"-drive", "file=" + drive + ",format=raw,if=virtio,cache=none,aio=threads,discard=unmap", "-device", "virtio-rng-pci",
	}
	if img.Kernel != "" {
		args = append(args, "-kernel", img.Kernel, "-initrd", img.Initrd, "-append", KernelArguments)
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64", args...)
}

// LoginPrompt ends the boot: the console prints it when the system is up.
const LoginPrompt = "login: "

// Boot boots the image from drive until its login prompt, ends it, and returns how long that took. The console
// goes to out; extra are options of qemu's.
func (img Image) Boot(ctx context.Context, drive string, out io.Writer, extra ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	cmd := img.Command(ctx, drive)
	cmd.Args = append(cmd.Args, extra...)
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err = await(io.TeeReader(console, out), LoginPrompt)
	took := time.Since(start)
	cancel()
	_, _ = io.Copy(io.Discard, console)
	_ = cmd.Wait() // it was ended, which is no news
	if err != nil {
		return 0, fmt.Errorf("the VM did not boot: %w: %s", err, said.String())
	}
	return took, nil
}

// await reads until text has come.
func await(console io.Reader, text string) error {
	var last []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(last), text); {
		if _, err := io.ReadFull(console, b); err != nil {
			return fmt.Errorf("console: %w", err)
		}
		last = append(last[max(0, len(last)-len(text)):], b[0])
	}
	return nil
}
