package oci

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// uploadsMax bounds the uploads that are begun and not ended: each has a file. keptMax bounds the blobs that wait
	// for a manifest that names them.
	uploadsMax, keptMax = 256, 4096
	// uploadIdle is how long an upload may rest, and keptFor how long a blob waits: a build pushes both at once.
	uploadIdle, keptFor = 30 * time.Minute, time.Hour
)

// pushes are what clients push and no manifest names yet. Safe for concurrent use.
type pushes struct {
	mu      sync.Mutex // guards what follows
	uploads map[string]*upload
	kept    map[string]kept // by itemKey
}

// kept is a blob that was pushed to a repository; it stays on the disk meanwhile.
type kept struct {
	item registry.Item
	blob *blob
	at   time.Time
}

// upload is a blob that a client sends, in parts.
type upload struct {
	door  *Door
	id    string
	place registry.Place
	// of the one request that has it at a time
	file *os.File
	hash hash.Hash
	size int64

	busy bool // guarded by pushes.mu, as used is
	used time.Time
}

// uploading is an upload in the hands of one request; it implements ociregistry.BlobWriter.
type uploading struct {
	*upload
	asker *asker
}

// beginUpload begins one.
func (d *Door) beginUpload(ctx context.Context, repo string) (*uploading, error) {
	a, p := askerOf(ctx), registry.Place{Repo: repo}
	if _, err := p.Name("latest"); err != nil {
		return nil, ociregistry.NewError(content.Line(err), ociregistry.ErrNameInvalid.Code(), nil)
	}
	d.pushes.mu.Lock()
	defer d.pushes.mu.Unlock()
	if len(d.pushes.uploads) >= uploadsMax {
		return nil, ociregistry.ErrTooManyRequests
	}
	f, err := os.CreateTemp(filepath.Join(d.blobs.dir, partDir), "push-*")
	if err != nil {
		return nil, noRoom(err)
	}
	u := &upload{door: d, id: rand.Text(), place: p, file: f, hash: sha256.New(), busy: true, used: d.cfg.Now()}
	d.pushes.uploads[u.id] = u
	return &uploading{u, a}, nil
}

// resumeUpload takes one up, at an offset if the client has said one.
func (d *Door) resumeUpload(ctx context.Context, repo, id string, offset int64) (*uploading, error) {
	a := askerOf(ctx)
	d.pushes.mu.Lock()
	defer d.pushes.mu.Unlock()
	u := d.pushes.uploads[id]
	switch {
	case u == nil || u.place.Repo != repo:
		return nil, ociregistry.ErrBlobUploadUnknown
	case u.busy:
		return nil, ociregistry.NewHTTPError(errors.New("another request sends to this upload"), http.StatusConflict, nil, nil)
	case a.ranged && offset >= 0 && offset != u.size:
		return nil, ociregistry.ErrRangeInvalid
	}
	u.busy, u.used = true, d.cfg.Now()
	return &uploading{u, a}, nil
}

// Write implements io.Writer.
func (w *uploading) Write(p []byte) (n int, err error) {
	if err = w.door.blobs.reserve(int64(len(p))); err == nil {
		n, err = w.file.WriteAt(p, w.size)
		w.door.blobs.release(int64(len(p) - n))
		w.hash.Write(p[:n])
		w.size += int64(n)
	}
	if err != nil {
		err = noRoom(err)
		w.asker.failed = err // the server says it in other words
	}
	return n, err
}

// noRoom says that the disk, or what blobs may take of it, is full.
func noRoom(err error) error {
	if errors.Is(err, content.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return ociregistry.NewHTTPError(fmt.Errorf("no room for what is pushed, on the disk of this node or in its --oci-quota: %w", err), http.StatusInsufficientStorage, nil, nil)
	}
	return err
}

// Close gives it back, to be gone on with.
func (w *uploading) Close() error {
	w.door.pushes.mu.Lock()
	defer w.door.pushes.mu.Unlock()
	w.busy, w.used = false, w.door.cfg.Now()
	return nil
}

// Size, ChunkSize and ID implement ociregistry.BlobWriter.
func (w *uploading) Size() int64    { return w.size }
func (w *uploading) ChunkSize() int { return 1 }
func (w *uploading) ID() string     { return w.id }

// Commit checks what has come, and keeps it for a manifest to name it. One that is not what it should be is gone.
func (w *uploading) Commit(id ociregistry.Digest) (out ociregistry.Descriptor, err error) {
	defer w.Cancel()
	if err := registry.CheckDigest(id); err != nil {
		return out, ociregistry.NewError(content.Line(err), ociregistry.ErrDigestInvalid.Code(), nil)
	}
	if got := digest.NewDigest(digest.SHA256, w.hash); got != id {
		return out, ociregistry.NewError(fmt.Sprintf("%d bytes came, of digest %s, not %s", w.size, got, id), ociregistry.ErrDigestInvalid.Code(), nil)
	}
	x, mine, err := w.door.blobs.adopt(blobID{Digest: id}, w.file.Name(), w.size)
	if err != nil {
		return out, noRoom(err)
	}
	it := registry.Item{Digest: id, Size: w.size}
	if mine {
		w.size = 0 // what it takes of the disk is the blob's by now
	}
	return descriptor(it, w.door.keep(w.place, it, x))
}

// Cancel ends it.
func (w *uploading) Cancel() error { w.cancel(); return nil }

func (u *upload) cancel() {
	p := &u.door.pushes
	p.mu.Lock()
	_, there := p.uploads[u.id]
	delete(p.uploads, u.id)
	p.mu.Unlock()
	if there {
		u.file.Close()
		os.Remove(u.file.Name())
		u.door.blobs.release(u.size)
	}
}

// pushBlob takes a blob in one piece.
func (d *Door) pushBlob(ctx context.Context, repo string, desc ociregistry.Descriptor, r io.Reader) (out ociregistry.Descriptor, err error) {
	w, err := d.beginUpload(ctx, repo)
	if err != nil {
		return out, err
	}
	defer w.Cancel()
	if _, err := io.Copy(w, r); err != nil {
		return out, err
	}
	return w.Commit(desc.Digest)
}

// keep has a blob stay for a while, whose user it takes over.
func (d *Door) keep(p registry.Place, it registry.Item, x *blob) error {
	d.pushes.mu.Lock()
	defer d.pushes.mu.Unlock()
	key := registry.ItemKey(p, it.Digest)
	if old, ok := d.pushes.kept[key]; ok {
		old.blob.close()
	} else if len(d.pushes.kept) >= keptMax {
		x.close()
		return ociregistry.ErrTooManyRequests
	}
	d.pushes.kept[key] = kept{it, x, d.cfg.Now()}
	return nil
}

// isKept returns a blob that was pushed to a repository.
func (d *Door) isKept(p registry.Place, id digest.Digest) (registry.Item, bool) {
	d.pushes.mu.Lock()
	defer d.pushes.mu.Unlock()
	k, ok := d.pushes.kept[registry.ItemKey(p, id)]
	return k.item, ok
}

// unkeep lets a blob go that a tree has by now.
func (d *Door) unkeep(p registry.Place, id digest.Digest) {
	d.pushes.mu.Lock()
	defer d.pushes.mu.Unlock()
	if k, ok := d.pushes.kept[registry.ItemKey(p, id)]; ok {
		delete(d.pushes.kept, registry.ItemKey(p, id))
		k.blob.close()
	}
}

// sweep removes what nobody has gone on with.
func (d *Door) sweep() {
	now, idle := d.cfg.Now(), []*upload{}
	d.pushes.mu.Lock()
	for _, u := range d.pushes.uploads {
		if !u.busy && now.Sub(u.used) > uploadIdle {
			u.busy = true // nobody takes it up any more
			idle = append(idle, u)
		}
	}
	for key, k := range d.pushes.kept {
		if now.Sub(k.at) > keptFor {
			delete(d.pushes.kept, key)
			k.blob.close()
		}
	}
	d.pushes.mu.Unlock()
	for _, u := range idle {
		u.cancel()
	}
}
