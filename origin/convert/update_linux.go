package convert

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// updateScript brings the file system in the file $1 up to the tree $2, mounted
// at $3: changed files are rewritten, the rest keeps its blocks, what was freed
// is trimmed. Files are compared by their bytes: trees of reproducible builds, and
// layers, have one time for all.
const updateScript = `
mount --make-rprivate /
mount -t ext4 -o loop,noatime "$1" "$3"
rsync -aHAX --checksum --numeric-ids --delete --exclude=/lost+found "$2/" "$3/"
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
	cmd := tool(ctx, "sh", "-euc", updateScript, "update", f.Name(), dir, mnt)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// The kernel means the death of the thread that started it: that is held.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, err = output(ctx, cmd)
	return err
}
