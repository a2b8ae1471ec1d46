package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
)

// blobs are the files of this node's blobs. Safe for concurrent use.
type blobs struct {
	dir   string
	quota int64

	mu  sync.Mutex       // guards what follows
	all map[blobID]*blob // that are whole, or come
	sum int64            // bytes that they take, or will
}

// blobID tells blobs apart. What a registry does not let everybody read is kept for each repository anew: another one,
// which may be anybody's, may name its digest, and has to send its bytes itself.
type blobID struct {
	Digest digest.Digest `cbor:"digest"`
	// Domain is a sum of the repository, "" for what everybody may read.
	Domain string `cbor:"domain,omitempty"`
}

// domainSize is how many bytes of a sum a domain has: none is found that has the same.
const domainSize = 16

func (id blobID) String() string { return string(id.Digest) + id.Domain }

func (id blobID) check() error {
	if err := registry.CheckDigest(id.Digest); err != nil {
		return err
	}
	if b, err := hex.DecodeString(id.Domain); err != nil || len(b) != 0 && len(b) != domainSize {
		return fmt.Errorf("blob %s: domain %.80q: %w", id.Digest, id.Domain, content.ErrInvalid)
	}
	return nil
}

// blob is a file that has, or will have, some bytes.
type blob struct {
	id   blobID
	size int64
	path string

	checking sync.Mutex // held while a blob of an earlier start is read; before mu

	mu     sync.Mutex // guards what follows
	have   int64      // bytes from the first on
	whole  bool       // all of it was checked
	failed error      // why it does not come
	moved  chan struct{}
	hash   hash.Hash // of the first have bytes
	file   *os.File  // while it comes
	used   time.Time
	users  int
	pulled bool // this node asks the registry for it
	turn   int  // rises when what has come is dropped
}

const (
	// tailSize is how much of a blob's end nobody is given before all of it is checked.
	tailSize = 64 << 10
	// wholeDir and partDir have blobs that are whole, and what was not when the node stopped.
	wholeDir, partDir = "sha256", "part"
)

// openBlobs looks what is there. A blob of an earlier start is checked when it is first wanted.
func openBlobs(dir string, quota int64) (*blobs, error) {
	b := &blobs{dir: dir, quota: quota, all: map[blobID]*blob{}}
	err := os.RemoveAll(filepath.Join(dir, partDir))
	for _, sub := range []string{wholeDir, partDir} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(filepath.Join(dir, wholeDir))
	for _, f := range files {
		sum, domain, _ := strings.Cut(f.Name(), ".")
		id := blobID{digest.NewDigestFromEncoded(digest.SHA256, sum), domain}
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() || id.check() != nil {
			continue
		}
		b.all[id] = &blob{id: id, size: info.Size(), path: b.path(id), have: info.Size(), moved: make(chan struct{}), used: info.ModTime()}
		b.sum += info.Size()
	}
	return b, err
}

// stage makes a folder for links to blobs. One that a crash leaves is gone at the next start, and the room that it takes.
func (b *blobs) stage() (string, error) {
	return os.MkdirTemp(filepath.Join(b.dir, partDir), "stage-")
}

func (b *blobs) path(id blobID) string {
	name := id.Digest.Encoded()
	if id.Domain != "" {
		name += "." + id.Domain
	}
	return filepath.Join(b.dir, wholeDir, name)
}

// get returns a blob that is whole or comes; nil where neither is so. Its user closes it.
func (b *blobs) get(id blobID) *blob {
	b.mu.Lock()
	x := b.all[id]
	if x != nil {
		x.enter()
	}
	b.mu.Unlock()
	if x == nil {
		return nil
	}
	if err := x.recheck(); err != nil {
		b.drop(x)
		x.close()
		return nil
	}
	return x
}

// begin makes room for a blob that is to come, or returns the one that does so already. It is the
// caller's to end.
func (b *blobs) begin(id blobID, size int64) (x *blob, mine bool, err error) {
	if x := b.get(id); x != nil {
		return x, false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.all[id]; x != nil {
		x.enter()
		return x, false, nil
	}
	if err := b.makeRoom(size); err != nil {
		return nil, false, fmt.Errorf("blob %s of %d bytes: %w", id.Digest, size, err)
	}
	f, err := os.CreateTemp(filepath.Join(b.dir, partDir), "*")
	if err != nil {
		return nil, false, err
	}
	x = &blob{id: id, size: size, path: b.path(id), moved: make(chan struct{}), hash: sha256.New(), file: f}
	x.enter()
	b.all[id] = x
	b.sum += size
	return x, true, nil
}

// makeRoom removes what was not used for the longest. Called with mu.
func (b *blobs) makeRoom(size int64) error {
	if size < 0 || size > b.quota {
		return fmt.Errorf("%w: blobs may take %d bytes on this node", content.ErrNoSpace, b.quota)
	}
	for b.sum+size > b.quota {
		var oldest *blob
		for _, x := range b.all {
			if x.idle() && (oldest == nil || x.used.Before(oldest.used)) {
				oldest = x
			}
		}
		if oldest == nil {
			return fmt.Errorf("%w: all of the %d bytes that blobs may take on this node are in use", content.ErrNoSpace, b.quota)
		}
		b.forget(oldest)
	}
	return nil
}

// reserve makes room for bytes of what is no blob yet, and release gives it back.
func (b *blobs) reserve(size int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.makeRoom(size)
	if err == nil {
		b.sum += size
	}
	return err
}

func (b *blobs) release(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum -= size
}

// adopt makes a blob of a file that has it, for which room was reserved, unless it is here already: then the file is
// not used. Its user closes it.
func (b *blobs) adopt(id blobID, file string, size int64) (x *blob, mine bool, err error) {
	if x := b.get(id); x != nil {
		if _, whole, _, _, _ := x.state(); whole {
			return x, false, nil
		}
		x.close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	x = &blob{id: id, size: size, path: b.path(id), have: size, whole: true, moved: make(chan struct{}), used: time.Now(), users: 1}
	if err := os.Rename(file, x.path); err != nil {
		return nil, false, err
	}
	if old := b.all[id]; old != nil { // it comes still, for who waits for it, and has the same file in the end
		b.sum -= old.size
	}
	b.all[id] = x
	return x, true, nil
}

// forget removes a blob. Called with mu.
func (b *blobs) forget(x *blob) {
	if b.all[x.id] == x {
		delete(b.all, x.id)
		b.sum -= x.size
		os.Remove(x.path) // what stays is found at the next start
	}
}

func (b *blobs) drop(x *blob) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(x)
}

func (x *blob) enter() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.users++
	x.used = time.Now()
}

func (x *blob) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.users--
}

func (x *blob) idle() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.users == 0 && x.file == nil
}

// recheck looks whether a blob is there, and reads one of an earlier start once. Who wants another does not wait for it.
func (x *blob) recheck() error {
	x.checking.Lock()
	defer x.checking.Unlock()
	x.mu.Lock()
	whole, known := x.whole, x.file != nil || x.failed != nil
	x.mu.Unlock()
	if known {
		return nil
	}
	if whole { // unless somebody has removed it to make room
		_, err := os.Stat(x.path)
		return err
	}
	f, err := os.Open(x.path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if digest.NewDigest(digest.SHA256, sum) != x.id.Digest {
		return content.ErrCorrupt
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.whole = true
	return nil
}

// Write appends what has come.
func (x *blob) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if int64(len(p)) > x.size-x.have {
		return 0, fmt.Errorf("blob %s: %w: more than its %d bytes came", x.id.Digest, content.ErrCorrupt, x.size)
	}
	n, err := x.file.WriteAt(p, x.have)
	x.hash.Write(p[:n])
	x.have += int64(n)
	x.stir()
	return n, err
}

// stir wakes all who wait. Called with mu.
func (x *blob) stir() { close(x.moved); x.moved = make(chan struct{}) }

// length is how much has come.
func (x *blob) length() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.have
}

// restart drops what has come, which is not what it should be.
func (x *blob) restart() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.have = 0
	x.turn++
	x.hash.Reset()
	x.stir()
}

// finish checks a blob of which all has come, and has it stay.
func (x *blob) finish() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if got := digest.NewDigest(digest.SHA256, x.hash); x.have != x.size || got != x.id.Digest {
		return fmt.Errorf("blob %s of %d bytes: %w: what came has %d bytes, and the digest %s", x.id.Digest, x.size, content.ErrCorrupt, x.have, got)
	}
	err := os.Rename(x.file.Name(), x.path)
	if err == nil {
		err = x.file.Close()
	}
	if err != nil {
		return err
	}
	x.whole, x.pulled, x.file = true, false, nil
	x.stir()
	return nil
}

// fail says why it does not come, and ends it.
func (b *blobs) fail(x *blob, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.file != nil {
		x.file.Close()
		os.Remove(x.file.Name())
	}
	x.file, x.pulled, x.failed = nil, false, err
	x.stir()
	if b.all[x.id] == x {
		delete(b.all, x.id)
		b.sum -= x.size
	}
}

// state is what others are told of it.
func (x *blob) state() (have int64, whole, pulled bool, moved <-chan struct{}, failed error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.have, x.whole, x.pulled, x.moved, x.failed
}

// await waits until more than off bytes may be read, of which the last hold bytes of what has come
// are not; it returns how many may be.
func (x *blob) await(ctx context.Context, off, hold int64) (int64, error) {
	for {
		have, whole, _, moved, failed := x.state()
		switch {
		case whole:
			return x.size, nil
		case failed != nil:
			return 0, failed
		case have-hold > off:
			return have - hold, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// bytes returns all of a small blob once it is checked.
func (x *blob) bytes(ctx context.Context) ([]byte, error) {
	if _, err := x.await(ctx, x.size, x.size); err != nil {
		return nil, err
	}
	return os.ReadFile(x.path)
}

// reader reads a part of a blob while that comes.
type reader struct {
	ctx      context.Context
	blob     *blob
	file     *os.File
	turn     int
	off, end int64
	hold     int64
	done     func()
}

// read returns what reads a part of a blob; done is called in the end.
func (x *blob) read(ctx context.Context, off, end, hold int64) (*reader, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	path := x.path
	if x.file != nil {
		path = x.file.Name()
	}
	f, err := os.Open(path)
	return &reader{ctx: ctx, blob: x, file: f, turn: x.turn, off: off, end: end, hold: hold}, err
}

// Read implements io.Reader; the rest of a blob that turned out to be false is not read.
func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	limit, err := r.blob.await(r.ctx, r.off, r.hold)
	if err != nil {
		return 0, err
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), limit-r.off, r.end-r.off)], r.off)
	r.blob.mu.Lock()
	again := r.blob.turn != r.turn
	r.blob.mu.Unlock()
	if again {
		return 0, fmt.Errorf("blob %s: %w: what came was not it", r.blob.id.Digest, content.ErrCorrupt)
	}
	r.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.done != nil {
		r.done()
	}
	r.blob.close()
	return r.file.Close()
}
