// Package dir keeps a bucket in a folder of one host: the embedded default. The
// folder is laid out as a static web root, so that any web server can serve it
// as a read-only origin.
//
// Objects are files under the folder, by their keys. A write goes to a file in
// ".tmp", is synced, and gets its name by link (if-absent) or rename, under an
// advisory lock on the folder that serialises conditional writers of all
// processes of the host. A crash leaves the old object or the new one, and
// perhaps a file in ".tmp", which the next Open removes when it is old.
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
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	tmpDir   = ".tmp"
	lockName = ".lock"
	// strayAge is how old an unnamed file must be to be removed: no write takes
	// as long.
	strayAge = 24 * time.Hour
)

// Bucket is a folder. Safe for concurrent use, by several processes too.
type Bucket struct {
	root string
	mu   sync.Mutex // holds the lock file for one writer of this process
}

// Open opens the bucket in the folder at root, which is made if absent.
func Open(root string) (*Bucket, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("origin folder %q: %w: want an absolute path", root, content.ErrInvalid)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("origin folder: %w", classify(err))
	}
	b := &Bucket{root: root}
	b.sweep()
	return b, nil
}

// sweep removes what crashed writers left. A folder that can't be written to is
// still good for reading.
func (b *Bucket) sweep() {
	files, err := os.ReadDir(filepath.Join(b.root, tmpDir))
	if err != nil {
		return
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > strayAge {
			os.Remove(filepath.Join(b.root, tmpDir, f.Name()))
		}
	}
}

// classify says what a file system error means to a caller.
func classify(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", content.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission), isReadOnly(err):
		return fmt.Errorf("%w: %w", content.ErrReadOnly, err)
	case isFull(err):
		return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", content.ErrUnavailable, err)
}

// path returns the file of a key; a key never leaves the folder.
func (b *Bucket) path(key string) (string, error) {
	if key == "" || path.Clean("/"+key) != "/"+key || strings.HasPrefix(key, ".") || strings.Contains(key, "/.") {
		return "", fmt.Errorf("key %.100q: %w", key, content.ErrInvalid)
	}
	return filepath.Join(b.root, filepath.FromSlash(key)), nil
}

// info describes an open or listed file. The ETag is a hash of what changes when
// the object does: every write makes a new file, so its inode, size and time, set
// in nanoseconds, are another.
func describe(key string, fi fs.FileInfo) bucket.Info {
	sum := content.Sum(fmt.Appendf(nil, "%d %d %d", fi.Size(), fi.ModTime().UnixNano(), inode(fi)))
	return bucket.Info{Key: key, Size: fi.Size(), ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Modified: fi.ModTime(), Now: time.Now()}
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(_ context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	name, err := b.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, classify(err))
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
	return &bucket.Object{Info: describe(key, fi), Body: body}, nil
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	name, err := b.path(key)
	if err != nil {
		return bucket.Info{}, err
	}
	tmp, err := b.stage(ctx, body)
	if err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	defer os.Remove(tmp)
	if err := b.publish(tmp, name, key, cond); err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	fi, err := os.Stat(tmp) // the same inode, whatever has happened to the name
	if err != nil {
		fi, err = os.Stat(name)
	}
	if err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w: %w", key, bucket.ErrUnknown, err)
	}
	return describe(key, fi), nil
}

// stage writes the body to a synced file without a name of its own.
func (b *Bucket) stage(ctx context.Context, body bucket.Body) (string, error) {
	dir := filepath.Join(b.root, tmpDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", classify(err)
	}
	f, err := os.CreateTemp(dir, "put-*")
	if err != nil {
		return "", classify(err)
	}
	_, err = io.Copy(f, io.NewSectionReader(body, 0, body.Size()))
	now := time.Now() // finer than what the kernel would set: the ETag hangs on it
	err = errors.Join(err, f.Chmod(0o644), os.Chtimes(f.Name(), now, now), ctx.Err())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(classify(err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// publish gives the staged file its name if the condition holds, durably. The
// staged name stays, for Put to describe.
func (b *Bucket) publish(tmp, name, key string, cond bucket.Condition) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	unlock, err := lockFile(filepath.Join(b.root, lockName))
	if err != nil {
		return classify(err)
	}
	defer unlock()
	current, err := os.Stat(name)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	switch {
	case cond.Absent() && exists:
		return fmt.Errorf("%w: it exists", bucket.ErrPrecondition)
	case cond.ETag() != "" && !exists:
		return fmt.Errorf("%w: it does not exist", bucket.ErrPrecondition)
	case cond.ETag() != "" && describe(key, current).ETag != cond.ETag():
		return fmt.Errorf("%w: it has changed", bucket.ErrPrecondition)
	}
	if err := b.makeDirs(filepath.Dir(name)); err != nil {
		return classify(err)
	}
	linked := tmp + ".named"
	if err := os.Link(tmp, linked); err != nil {
		return classify(err)
	}
	if err := os.Rename(linked, name); err != nil {
		return errors.Join(classify(err), os.Remove(linked))
	}
	if err := durable.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("%w: %w", bucket.ErrUnknown, err)
	}
	return nil
}

// makeDirs makes dir and its parents, each synced into its own parent.
func (b *Bucket) makeDirs(dir string) error {
	if _, err := os.Stat(dir); err == nil || dir == b.root {
		return err
	}
	if err := b.makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// List implements bucket.Bucket. Folders are read as the consumer reaches them.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		w := walk{ctx: ctx, root: b.root, prefix: prefix, after: after, yield: yield}
		w.dir("")
	}
}

type walk struct {
	ctx           context.Context
	root          string
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
	entries, err := os.ReadDir(filepath.Join(w.root, filepath.FromSlash(folder)))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		w.yield(bucket.Info{}, fmt.Errorf("list %s: %w", folder, classify(err)))
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
		w.yield(bucket.Info{}, fmt.Errorf("list %s: %w", key, classify(err)))
		return false
	}
	return w.yield(describe(key, fi), nil)
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(_ context.Context, key string) error {
	name, err := b.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", key, classify(err))
	}
	if err := durable.SyncDir(filepath.Dir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", key, classify(err))
	}
	return nil
}

var _ bucket.Bucket = (*Bucket)(nil)
