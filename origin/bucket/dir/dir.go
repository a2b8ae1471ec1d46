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
// Everybody on the host may read what is there, as a web server must; a folder
// above that is closed to others keeps them out. A part of the bucket that is to lie
// on another disk is mounted in its place: lists do not follow symbolic links.
package dir

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// folderMode lets a web server of another user read what is there.
	folderMode = 0o755
	fileMode   = 0o644

	tmpDir   = ".tmp"
	lockName = ".lock"
	// strayAge is for how long nobody has written to a file that is removed. Were
	// its writer only asleep, its write fails, and is tried again.
	strayAge = time.Hour
	// timeGrain is the coarsest time that ETags can be made of. Windows keeps
	// tenths of it.
	timeGrain = time.Microsecond
	// lockWaitMin and lockWaitMax bound the pauses between looks whether another
	// process is done.
	lockWaitMin = 500 * time.Microsecond
	lockWaitMax = 20 * time.Millisecond
)

// Bucket is a folder. Safe for concurrent use, by several processes too.
type Bucket struct {
	root string
	turn chan struct{} // holds one element while a goroutine of this process has the lock, or waits for it
}

// Open opens the bucket in the folder at root, which is made if absent.
func Open(root string) (*Bucket, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("origin folder %q: %w: want an absolute path", root, content.ErrInvalid)
	}
	b := &Bucket{root, make(chan struct{}, 1)}
	if err := durable.MkdirAll(root, folderMode); err != nil {
		return nil, fmt.Errorf("origin folder: %w", b.unwritten(err))
	}
	b.sweep()
	return b, nil
}

// sweep removes what crashed writers left. A folder that can't be written to is
// still good for reading, so failures wait for the first write.
func (b *Bucket) sweep() {
	files, err := os.ReadDir(filepath.Join(b.root, tmpDir))
	if err != nil {
		return
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > strayAge {
			os.Remove(filepath.Join(b.root, tmpDir, f.Name())) // if not now, then at the next Open
		}
	}
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
	case isFull(err):
		return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return b.unread(err)
}

// path returns the file of a key; a key never leaves the folder.
func (b *Bucket) path(key string) string { return filepath.Join(b.root, filepath.FromSlash(key)) }

// describe says what is known of an open or listed file.
func describe(key string, fi fs.FileInfo) bucket.Info {
	sum := content.Sum(fmt.Appendf(nil, "%d %d %d", fi.Size(), fi.ModTime().UnixNano(), inode(fi)))
	return bucket.Info{Key: key, Size: fi.Size(), ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Modified: fi.ModTime(), Now: time.Now()}
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	f, err := os.Open(b.path(key))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, b.unread(err))
	}
	fi, err := f.Stat()
	if err != nil || fi.IsDir() {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, content.ErrNotFound), err, f.Close())
	}
	off, length, err := r.Within(fi.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get %s: %w", key, err), f.Close())
	}
	body := struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, length), f}
	return &bucket.Object{Info: describe(key, fi), Body: bucket.Exactly(body, length)}, nil
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	// Crash from here on: a stray file, until it is swept.
	tmp, err := b.stage(body)
	if err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	err = b.locked(ctx, func() error { return b.publish(tmp, key, cond) })
	os.Remove(tmp.name) // gone already after a rename
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
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("another process is writing: %w", ctx.Err())
		}
	}
}

// publish gives the staged file its name if the condition holds, durably.
func (b *Bucket) publish(tmp staged, key string, cond bucket.Condition) error {
	name := b.path(key)
	current, err := os.Stat(name)
	exists := err == nil
	switch {
	case err != nil && isNotFolder(err):
		return fmt.Errorf("%w: a part of the key is an object, and can't be a folder too", content.ErrInvalid)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return b.unwritten(err)
	case exists && current.IsDir():
		return fmt.Errorf("%w: the key is the folder of other objects", content.ErrInvalid)
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

// List implements bucket.Bucket. Folders are read as the consumer reaches them.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		w := walk{ctx: ctx, b: b, prefix: prefix, after: after, yield: yield}
		w.dir("")
	}
}

type walk struct {
	ctx           context.Context
	b             *Bucket
	prefix, after string
	yield         func(bucket.Info, error) bool
}

// dir yields the objects below a folder, given as "a/b/", in order of keys, and
// reports whether to go on. A folder sorts as its name with a slash behind.
func (w walk) dir(folder string) bool {
	if w.ctx.Err() != nil {
		w.yield(bucket.Info{}, w.ctx.Err())
		return false
	}
	entries, err := os.ReadDir(filepath.Join(w.b.root, filepath.FromSlash(folder)))
	if err != nil {
		if err = w.b.unread(err); errors.Is(err, content.ErrNotFound) {
			return true
		}
		w.yield(bucket.Info{}, fmt.Errorf("list %s: %w", folder, err))
		return false
	}
	keyOf := func(e fs.DirEntry) string {
		if e.IsDir() {
			return folder + e.Name() + "/"
		}
		return folder + e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(keyOf(a), keyOf(b)) })
	for _, e := range entries {
		if key := keyOf(e); !strings.HasPrefix(e.Name(), ".") && !w.entry(e, key) {
			return false
		}
	}
	return true
}

func (w walk) entry(e fs.DirEntry, key string) bool {
	if e.IsDir() {
		mayHold := strings.HasPrefix(key, w.prefix) || strings.HasPrefix(w.prefix, key)
		if !mayHold || key < w.after && !strings.HasPrefix(w.after, key) {
			return true
		}
		return w.dir(key)
	}
	if !strings.HasPrefix(key, w.prefix) || key <= w.after {
		return true
	}
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
		return true
	}
	if err != nil {
		w.yield(bucket.Info{}, fmt.Errorf("list %s: %w", key, w.b.unread(err)))
		return false
	}
	return w.yield(describe(key, fi), nil)
}

// Delete implements bucket.Bucket. The folders stay: another writer may be about
// to use them.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := errors.Join(bucket.CheckKey(key), ctx.Err()); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	err := b.locked(ctx, func() error {
		if err := durable.Remove(b.path(key)); err != nil {
			return b.unwritten(err)
		}
		return nil
	})
	if err != nil && !errors.Is(err, content.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

var _ bucket.Bucket = (*Bucket)(nil)
