// Package debian makes the disk image that demonstrations, tests and benchmarks
// boot: Debian bookworm with a cloud kernel, systemd and a login on the serial
// console, as an ext4 file system without a partition table.
package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is what is needed to boot: a raw disk, and the kernel and initial RAM
// disk that are given to qemu beside it.
type Image struct {
	Root   string // the folder that the disk was made of
	Disk   string
	Kernel string
	Initrd string
}

const (
	release = "bookworm"
	// include is what a server has beyond the minimal system; the list of
	// research traces, so that figures compare.
	include = "linux-image-cloud-amd64,systemd,systemd-sysv,udev,dbus,login,passwd,initramfs-tools,e2fsprogs,iproute2,ifupdown," +
		"isc-dhcp-client,openssh-server,openssh-client,python3,curl,ca-certificates,tzdata,procps,less,cron,zstd"
	diskSize = "2G"
	// Fixed identifiers make the same tree give nearly the same disk again.
	diskUUID = "5f0e0000-0000-4000-8000-000000000001"
	hashSeed = "5f0e0000-0000-4000-8000-000000000002"
)

// Build makes the image in dir, or finds the one made there before. It needs
// root and debootstrap, and takes minutes the first time; log gets what the
// tools say.
func Build(ctx context.Context, dir string, log io.Writer) (Image, error) {
	img := Image{filepath.Join(dir, "root"), filepath.Join(dir, "debian.img"), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")}
	if _, err := os.Stat(img.Disk); err == nil {
		return img, nil
	}
	if os.Geteuid() != 0 {
		return Image{}, errors.New("making a Debian image needs root: debootstrap creates devices and owners")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	b := builder{ctx: ctx, log: log}
	b.bootstrap(img.Root)
	b.configure(img.Root)
	b.copyBoot(img)
	b.disk(img)
	if b.err != nil {
		return Image{}, fmt.Errorf("make a Debian image in %s: %w", dir, b.err)
	}
	return img, nil
}

// builder runs steps until one fails.
type builder struct {
	ctx context.Context
	log io.Writer
	err error
}

func (b *builder) run(name string, args ...string) {
	if b.err != nil {
		return
	}
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = b.log, b.log
	if err := cmd.Run(); err != nil {
		b.err = fmt.Errorf("%s: %w", name, err)
	}
}

func (b *builder) do(step func() error) {
	if b.err == nil {
		b.err = step()
	}
}

// bootstrap leaves a finished tree, or none: it works beside and renames.
func (b *builder) bootstrap(root string) {
	if _, err := os.Stat(root); err == nil {
		return
	}
	tmp := root + ".tmp"
	b.do(func() error { return os.RemoveAll(tmp) })
	b.run("debootstrap", "--variant=minbase", "--include="+include, release, tmp)
	b.do(func() error { return os.Rename(tmp, root) })
}

// configure sets an empty root password, the root file system and the console.
func (b *builder) configure(root string) {
	b.run("chroot", root, "passwd", "-d", "root")
	for name, text := range map[string]string{
		"etc/fstab":    "/dev/vda / ext4 defaults 0 1\n",
		"etc/hostname": "vm\n",
	} {
		b.do(func() error { return os.WriteFile(filepath.Join(root, name), []byte(text), 0o644) })
	}
	b.do(func() error { return os.RemoveAll(filepath.Join(root, "var/cache/apt/archives")) })
	b.do(func() error { return os.MkdirAll(filepath.Join(root, "var/cache/apt/archives/partial"), 0o755) })
}

func (b *builder) copyBoot(img Image) {
	for prefix, to := range map[string]string{"vmlinuz-": img.Kernel, "initrd.img-": img.Initrd} {
		b.do(func() error {
			found, err := filepath.Glob(filepath.Join(img.Root, "boot", prefix+"*"))
			if err != nil || len(found) == 0 {
				return fmt.Errorf("no %s in the tree: %w", prefix, errors.Join(err, os.ErrNotExist))
			}
			data, err := os.ReadFile(found[len(found)-1])
			if err != nil {
				return err
			}
			return os.WriteFile(to, data, 0o644)
		})
	}
}

func (b *builder) disk(img Image) {
	tmp := img.Disk + ".tmp"
	b.do(func() error { return errors.Join(os.RemoveAll(tmp), os.WriteFile(tmp, nil, 0o644)) })
	b.run("truncate", "-s", diskSize, tmp)
	b.run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-U", diskUUID, "-E", "hash_seed="+hashSeed+",root_owner=0:0,lazy_itable_init=0", "-d", img.Root, tmp)
	b.run("fallocate", "-d", tmp)
	b.do(func() error { return os.Rename(tmp, img.Disk) })
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
