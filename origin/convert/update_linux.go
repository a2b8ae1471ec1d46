package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// updateScript brings the file system in the file $1 up to the tree $2, mounted
// at $3: changed files are rewritten, the rest keeps its blocks, what was freed
// is trimmed.
const updateScript = `
mount --make-rprivate /
mount -t ext4 -o loop,noatime "$1" "$3"
rsync -aHAX --numeric-ids --delete --exclude=/lost+found "$2/" "$3/"
sync -f "$3"
fstrim "$3" || true
umount "$3"
`

// update runs the script in a mount namespace of its own, so that nothing stays
// mounted whatever happens to us.
func (o Options) update(ctx context.Context, dir string, f *os.File) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: a new version of a directory is written into the mounted previous one, which needs root; or import a disk file", os.ErrPermission)
	}
	if err := o.grow(ctx, f); err != nil {
		return err
	}
	mnt, err := os.MkdirTemp(o.Temp, "mount-*")
	if err != nil {
		return err
	}
	defer os.Remove(mnt)
	o.Note("bringing the previous version up to date")
	cmd := exec.CommandContext(ctx, "/bin/sh", "-euc", updateScript, "update", f.Name(), dir, mnt)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("update: %w: %s", err, strings.TrimSpace(string(out[max(0, len(out)-saidMax):]))), context.Cause(ctx))
	}
	return nil
}
