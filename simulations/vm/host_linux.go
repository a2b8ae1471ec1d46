package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelScript fetches the kernel of guests, by go:embed.
//
//go:embed kernel.sh
var kernelScript string

// commands are what must be there before a guest boots, each with its package.
const commands = "qemu-system-x86_64:qemu-system-x86 busybox:busybox-static mke2fs:e2fsprogs ldd:libc-bin" +
	" apt-get:apt dpkg-deb:dpkg xz:xz-utils tar:tar"

// kernel is where the packages of a kernel come from: the newest of a Debian suite
// whose version begins so.
type kernel struct{ suite, prefix string }

// kernelFor returns what a guest boots: the kernel of Debian 13, or the newest of all.
func kernelFor(newest bool) kernel {
	if newest {
		return kernel{suite: "trixie-backports"}
	}
	return kernel{suite: "bookworm-backports", prefix: "6.12."}
}

// Prepare makes what all guests share, or finds it made before, in the user's
// cache folder: the kernels, which are downloaded once, and the disk of tools. Log
// gets what apt says. It fails when something that a guest needs is missing, and
// names the Debian package. Run does all this by itself; it may be done ahead.
func Prepare(ctx context.Context, log io.Writer) error {
	_, err := prepare(ctx, kernelFor(false), log)
	if err == nil {
		_, err = prepare(ctx, kernelFor(true), log)
	}
	return err
}

func prepare(ctx context.Context, k kernel, log io.Writer) (host, error) {
	if err := missing(commands + tools); err != nil {
		return host{}, err
	}
	busybox, err := look("busybox")
	if err != nil {
		return host{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return host{}, err
	}
	dir := filepath.Join(cache, "grange", "vm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return host{}, err
	}
	// Packages are tested side by side; one of them fetches and makes.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return host{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return host{}, fmt.Errorf("lock %s: %w", dir, err)
	}
	files, err := k.fetch(ctx, dir, log)
	if err != nil {
		return host{}, fmt.Errorf("fetch a kernel to %s: %w", dir, err)
	}
	tools, err := toolDisk(ctx, dir)
	if err != nil {
		return host{}, fmt.Errorf("make the disk of tools in %s: %w", dir, err)
	}
	return host{busybox, files, tools}, nil
}

// fetch returns the folder of the kernel. It is named by the script that makes it, and
// its arguments: one that takes more modules makes another.
func (k kernel) fetch(ctx context.Context, dir string, log io.Writer) (string, error) {
	files := filepath.Join(dir, "kernel-"+short([]byte(kernelScript+k.suite+k.prefix)))
	if _, err := os.Stat(files); err == nil {
		return files, nil
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", kernelScript, "kernel.sh", files, k.suite, k.prefix)
	cmd.Stdout, cmd.Stderr = log, log
	return files, cmd.Run()
}

// missing names the packages of those commands, written command:package, that
// this machine has not.
func missing(commands string) error {
	var packages []string
	for pair := range strings.FieldsSeq(commands) {
		name, pkg, _ := strings.Cut(pair, ":")
		if _, err := look(name); err != nil {
			packages = append(packages, pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	slices.Sort(packages)
	return fmt.Errorf("a virtual machine needs Debian packages that are missing: apt-get install %s: %w",
		strings.Join(slices.Compact(packages), " "), exec.ErrNotFound)
}

// look finds a command, also one of the administrator's, which the path of other
// users leaves out.
func look(name string) (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

func short(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}
