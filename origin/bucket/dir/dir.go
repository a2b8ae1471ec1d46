// Package dir keeps a bucket in a folder of one host: the embedded default. The
// folder is laid out as a static web root, so that any web server can serve it
// as a read-only origin.
//
// Objects are files under the folder, by their keys. A write goes to a file in
// ".tmp", which is synced and then gets its name: by link if the object must be
// absent, else by rename. An advisory lock on ".lock" makes comparing and naming
// one step among all processes of the host. A crash leaves the old object or the
// new one, and perhaps a file in ".tmp", which an Open removes once it is old.
//
// An ETag is made of inode, size and modification time in nanoseconds, so that
// reading it costs one stat, whatever the size of the object. It changes with
// each write: the new file is made while the old one still holds its inode, and
// when an inode comes back later the time is another. That hangs on the file
// system keeping fine times, which each write checks on its own file; without
// them it is refused.
//
// The folder is for its user alone: what others may read of it is a matter of scopes,
// which a file system knows nothing of. A web server that is to show it runs as that
// user, and gives out packs/public/ at most. A part of the bucket that is to lie on
// another disk is mounted in its place: symbolic links are not followed, nor is
// anything else believed that is no regular file.
//
// Each operation ends when its ctx does, though the disk below may be a network mount
// that answers no more: the system call is left to itself then.
package dir

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/scratch"
)

const (
	// folderMode and fileMode keep the other users of the host out.
	folderMode = 0o700
	fileMode   = 0o600

	tmpDir   = ".tmp"
	lockName = ".lock"
	// strayAge is for how long nobody has written to a file that is removed. Were
	// its writer only asleep, its write fails, and is tried again.
	strayAge = time.Hour
	// changedLag is how much later than its own time a file may get its name: it waits
	// for other writers' turns.
	changedLag = time.Minute
	// timeGrain is the coarsest time that ETags can be made of. Windows keeps tenths of it.
	timeGrain = time.Microsecond
	// lockWaitMin and lockWaitMax bound the pauses between looks whether another process is done.
	lockWaitMin = 500 * time.Microsecond
	lockWaitMax = 20 * time.Millisecond
)

// Bucket is a folder. Safe for concurrent use, by several processes too.
type Bucket struct {
	root    string
	turn    chan struct{} // holds one element while a goroutine of this process has the lock, or waits for it
	calls   chan struct{} // holds one element for each call into the file system
	buffers scratch.Pool
}

// Open opens the bucket in the folder at root, which is made if absent, and closed to
// other users if it is not. Log receives what was done to a folder that was there.
func Open(ctx context.Context, root string, log *slog.Logger) (*Bucket, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("origin folder %q: %w: want an absolute path", root, content.ErrInvalid)
	}
	b := &Bucket{root: root, turn: make(chan struct{}, 1), calls: make(chan struct{}, callsMax)}
	err := do(ctx, b, func() error {
		if err := durable.MkdirAll(root, folderMode); err != nil {
			return b.unwritten(err)
		}
		if err := own(root, log); err != nil {
			return err
		}
		b.sweep(strayAge)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("origin folder: %w", err)
	}
	return b, nil
}

// Leftovers removes what crashed writers left and nobody has written to for that long, see bucket.Leftovers.
func (b *Bucket) Leftovers(ctx context.Context, age time.Duration) (n int, bytes int64, err error) {
	err = do(ctx, b, func() error {
		n, bytes = b.sweep(max(age, strayAge))
		return nil
	})
	return n, bytes, err
}

// sweep removes what crashed writers left. A folder that can't be written to is
// still good for reading, so failures wait for the first write.
func (b *Bucket) sweep(age time.Duration) (n int, bytes int64) {
	files, err := os.ReadDir(filepath.Join(b.root, tmpDir))
	if err != nil {
		return 0, 0
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || time.Since(info.ModTime()) <= age {
			continue
		}
		if os.Remove(filepath.Join(b.root, tmpDir, f.Name())) == nil { // else at the next Open
			n, bytes = n+1, bytes+info.Size()
		}
	}
	return n, bytes
}

// unread says what a file system error means to a reader.
func (b *Bucket) unread(err error) error {
	cause := content.ErrUnavailable
	switch {
	case errors.Is(err, fs.ErrNotExist), isNotFolder(err):
		if _, rerr := os.Stat(b.root); rerr == nil { // without its root nothing is known to be absent
			cause = content.ErrNotFound
		}
	case errors.Is(err, fs.ErrPermission):
		cause = content.ErrForbidden
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// unwritten says what a file system error means to a writer.
func (b *Bucket) unwritten(err error) error {
	switch {
	case errors.Is(err, content.ErrReadOnly):
		return err
	case errors.Is(err, fs.ErrPermission), isReadOnly(err):
		return fmt.Errorf("%w: this user may not write there: %w", content.ErrReadOnly, err)
	case durable.IsFull(err):
		return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return b.unread(err)
}

// path returns the file of a key; a key never leaves the folder.
func (b *Bucket) path(key string) string { return filepath.Join(b.root, filepath.FromSlash(key)) }

// describe says what is known of an open or listed file.
func describe(key string, fi fs.FileInfo) bucket.Info {
	sum := content.Sum(fmt.Appendf(nil, "%d %d %d", fi.Size(), fi.ModTime().UnixNano(), inode(fi)))
	return bucket.Info{Key: key, Size: fi.Size(), ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Modified: modified(fi), Now: time.Now()}
}

// modified is when the file was written: by its own time, which whoever may write sets
// as it likes, unless the file system knows that it was touched later. A hard link
// counts too, which a write makes within changedLag.
func modified(fi fs.FileInfo) time.Time {
	if at, ok := changed(fi); ok && at.Sub(fi.ModTime()) > changedLag {
		return at
	}
	return fi.ModTime()
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	o, err := call(ctx, b, func() (opened, error) { return b.openObject(key) }, func(o opened) { o.Close() })
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	off, length, err := r.Within(o.info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, err), o.Close())
	}
	body := &part{ctx, b, o.File, o.local, off, off + length}
	return &bucket.Object{Info: describe(key, o.info), Body: bucket.Exactly(body, length)}, nil
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	// Crash from here on: a stray file, until it is swept.
	mine := newLent(body)
	tmp, err := call(ctx, b, func() (staged, error) { return b.stage(mine) }, func(s staged) { os.Remove(s.name) })
	if err != nil {
		mine.takeBack()
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	var begun atomic.Bool // publishing, or never to be
	err = do(ctx, b, func() error {
		defer os.Remove(tmp.name) // gone already after a rename
		return b.locked(ctx, func() error {
			if begun.Swap(true) {
				return errAbandoned
			}
			return b.publish(tmp, key, cond)
		})
	})
	if errors.Is(err, errAbandoned) && begun.Swap(true) {
		err = fmt.Errorf("%w: %w", bucket.ErrUnknown, err)
	}
	if err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	return describe(key, tmp.info), nil
}

// staged is a file that is whole and on disk, and not an object yet.
type staged struct {
	name string
	info fs.FileInfo
}

// stage writes the body to a synced file in ".tmp".
func (b *Bucket) stage(body bucket.Body) (staged, error) {
	dir := filepath.Join(b.root, tmpDir)
	if err := os.Mkdir(dir, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return staged{}, b.unwritten(err)
	}
	f, err := os.CreateTemp(dir, "put-*")
	if err != nil {
		return staged{}, b.unwritten(err)
	}
	info, err := fill(f, body)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return staged{}, b.unwritten(err)
	}
	return staged{f.Name(), info}, nil
}

// fill writes body to f, whole, synced and with the time of now.
func fill(f *os.File, body bucket.Body) (fs.FileInfo, error) {
	if _, err := io.Copy(f, io.NewSectionReader(body, 0, body.Size())); err != nil {
		return nil, err
	}
	now := time.Now() // finer than the tick that the kernel would note
	if err := errors.Join(f.Chmod(fileMode), os.Chtimes(f.Name(), now, now), f.Sync()); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && now.Sub(info.ModTime()).Abs() >= timeGrain {
		err = fmt.Errorf("%w: the file system keeps the time %s as %s, too coarse to tell two writes apart; use ext4, xfs, btrfs, zfs or ntfs", content.ErrReadOnly, now, info.ModTime())
	}
	return info, err
}

// locked runs f while no other writer of the host publishes or deletes.
func (b *Bucket) locked(ctx context.Context, f func() error) error {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	lock, err := os.OpenFile(filepath.Join(b.root, lockName), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return b.unwritten(err)
	}
	defer lock.Close() // which unlocks; nothing was written
	for wait := lockWaitMin; ; wait = min(2*wait, lockWaitMax) {
		if mine, err := durable.TryLock(lock); err != nil || mine {
			if err != nil {
				return b.unwritten(err)
			}
			return f()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("another process is writing: %w", ctx.Err())
		}
	}
}

// publish gives the staged file its name if the condition holds, durably.
func (b *Bucket) publish(tmp staged, key string, cond bucket.Condition) error {
	name := b.path(key)
	current, err := os.Lstat(name)
	exists := err == nil
	switch {
	case err != nil && isNotFolder(err):
		return fmt.Errorf("%w: a part of the key is an object, and can't be a folder too", content.ErrInvalid)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return b.unwritten(err)
	case exists && current.IsDir():
		return fmt.Errorf("%w: the key is the folder of other objects", content.ErrInvalid)
	case exists && !current.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no regular file: remove it, or what put it there", content.ErrCorrupt, name)
	case cond.Absent() && exists:
		return fmt.Errorf("%w: it exists", bucket.ErrPrecondition)
	case cond.ETag() != "" && !exists:
		return fmt.Errorf("%w: it does not exist", bucket.ErrPrecondition)
	case cond.ETag() != "" && describe(key, current).ETag != cond.ETag():
		return fmt.Errorf("%w: it has changed", bucket.ErrPrecondition)
	}
	// Crash: empty folders, which no list shows.
	if err := durable.MkdirAll(filepath.Dir(name), folderMode); err != nil {
		return b.unwritten(err)
	}
	// Crash before or after: the old object, or the new one.
	if cond.Absent() { // by link, which would fail on a file of somebody who does not lock
		err = os.Link(tmp.name, name)
	} else {
		err = os.Rename(tmp.name, name)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: it exists", bucket.ErrPrecondition)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: the staged file was swept: %w", content.ErrUnavailable, err)
	case err != nil:
		return b.unwritten(err)
	}
	if err := durable.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("%w: %w", bucket.ErrUnknown, err)
	}
	return nil
}

// List implements bucket.Bucket. The folders are read when it begins, and the files
// looked at as the consumer reaches them.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		keys, err := call(ctx, b, func() ([]string, error) { return b.keys(ctx, prefix, after) }, nil)
		for len(keys) > 0 && err == nil {
			part := keys[:min(len(keys), statsMax)]
			keys = keys[len(part):]
			var infos []bucket.Info
			infos, err = call(ctx, b, func() ([]bucket.Info, error) { return b.stat(part) }, nil)
			for _, info := range infos {
				if !yield(info, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(bucket.Info{}, fmt.Errorf("list %s: %w", prefix, err))
		}
	}
}

// lostFound is a folder that file systems have at their top, and that only root may read.
const lostFound = "lost+found"

// keys returns what a list yields, in order. What is neither a file nor a folder is passed over.
func (b *Bucket) keys(ctx context.Context, prefix, after string) (keys []string, err error) {
	err = fs.WalkDir(os.DirFS(b.root), ".", func(key string, e fs.DirEntry, err error) error {
		if err != nil {
			if err = b.unread(err); errors.Is(err, content.ErrNotFound) { // it went meanwhile
				return nil
			}
			return err
		}
		folder := key + "/"
		reaches := strings.HasPrefix(folder, prefix) || strings.HasPrefix(prefix, folder)
		behind := folder < after && !strings.HasPrefix(after, folder)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case key == ".":
		case e.IsDir() && (e.Name()[0] == '.' || key == lostFound || !reaches || behind):
			return fs.SkipDir
		case e.Type()&fs.ModeSymlink != 0 && e.Name()[0] != '.' && reaches && !behind && isFolder(b.path(key)):
			return fmt.Errorf("%w: %s is a link to another folder, and what is there is never listed; mount that folder there instead", content.ErrInvalid, b.path(key))
		case e.Type().IsRegular() && e.Name()[0] != '.' && strings.HasPrefix(key, prefix) && key > after:
			keys = append(keys, key)
		}
		return nil
	})
	slices.Sort(keys)
	return keys, err
}

func isFolder(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// stat looks at files; those deleted meanwhile are left out.
func (b *Bucket) stat(keys []string) (infos []bucket.Info, err error) {
	for _, key := range keys {
		fi, err := os.Lstat(b.path(key))
		if err == nil && fi.Mode().IsRegular() {
			infos = append(infos, describe(key, fi))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return infos, b.unread(err)
		}
	}
	return infos, nil
}

// Delete implements bucket.Bucket. The folders stay: another writer may be about to use them.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	err := do(ctx, b, func() error {
		return b.locked(ctx, func() error {
			if err := durable.Remove(b.path(key)); err != nil {
				return b.unwritten(err)
			}
			return nil
		})
	})
	if err != nil && !errors.Is(err, content.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}
