package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"syscall"

	"github.com/grangemesh/grange/origin/content"
)

// own keeps others of the host out of the folder, whose contents are for whom the scopes name. What lies
// below is behind it, whatever its own mode. A wider folder is closed if it is a bucket, or empty; one that
// others use too is not ours to close.
func own(root string, log *slog.Logger) error {
	info, err := os.Stat(root)
	if err != nil || runtime.GOOS == "windows" { // there, folders have no such mode
		return err
	}
	mode := info.Mode()
	if mode.Perm()&^folderMode == 0 {
		return nil
	}
	if mode&os.ModeSticky != 0 || !bucketOrEmpty(root) {
		return fmt.Errorf("%w: others of this host use %s (mode %s), and what is stored there is not for them: name a folder of its own, or close this one with chmod 700", content.ErrForbidden, root, mode)
	}
	err = os.Chmod(root, mode.Perm()&folderMode)
	switch {
	case errors.Is(err, syscall.EROFS):
		log.Warn("others of this host may read the origin's folder, which is mounted read-only", "folder", root, "mode", mode.String())
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: others of this host may read %s (mode %s), and it belongs to another user: run chmod 700 as its owner, or chown it to the user of this node", content.ErrForbidden, root, mode)
	case err != nil:
		return err
	}
	log.Warn("the origin's folder was open to others of this host and is closed now", "folder", root, "was", mode.String())
	return nil
}

// bucketOrEmpty reports whether nothing but a bucket is in the folder.
func bucketOrEmpty(root string) bool {
	for _, name := range []string{lockName, tmpDir, content.KeyMesh} {
		if _, err := os.Lstat(root + string(os.PathSeparator) + name); err == nil {
			return true
		}
	}
	entries, err := os.ReadDir(root)
	return err == nil && len(entries) == 0
}
