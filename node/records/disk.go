package records

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content/durable"
)

// recordFile is a record on disk. What was heard is kept as that: a restart makes
// nobody's word the origin's.
type recordFile struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
	// Seen is when it was seen first, by which a signer that was revoked later is
	// believed.
	Seen int64 `cbor:"seen"`
	// Said tells what the origin said to this node from what was heard; then Statement
	// is the word of the member that saw it there.
	Said      bool   `cbor:"said"`
	Statement []byte `cbor:"statement"`
	Over      string `cbor:"over"`
	// Taken tells that it is not at the origin any more, without having been deleted.
	Taken bool `cbor:"taken"`
}

// kept is the record that goes to disk, or nil.
func (e entry) kept() *Known {
	if e.said != nil {
		return e.said
	}
	return e.heard
}

// save brings the file of a name to what memory has. A failure costs the name only
// while the origin is away, so it is logged and not returned.
func (n *Names) save(id string) {
	n.saving.Lock() // the last one to write has the newest
	defer n.saving.Unlock()
	n.mu.RLock()
	e := n.entries[id]
	old, taken := n.taken[id]
	n.mu.RUnlock()
	path := filepath.Join(n.cfg.Dir, filepath.FromSlash(id))
	k := e.kept()
	if taken = taken && k == nil; taken {
		k = &old
	}
	if k == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.cfg.Log.Warn("the record of a name that is gone stays on disk", "file", path, "err", err)
		}
		return
	}
	b, err := n.cfg.Codec.Marshal(recordFile{k.Sealed, k.ETag, k.first.UnixMilli(), e.said != nil, k.statement, k.over, taken})
	if err == nil {
		err = durable.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(path, b, 0o600)
	}
	if err != nil {
		n.cfg.Log.Warn("a record is not kept on disk", "name", k.Name, "err", err)
	}
}

// load reads all records on disk.
func (n *Names) load() error {
	dir := os.DirFS(n.cfg.Dir) // whose own name may be a pattern
	files, err := fs.Glob(dir, "*/*")
	if err != nil {
		return err
	}
	for _, path := range files {
		if strings.HasPrefix(filepath.Base(path), ".") {
			continue
		}
		b, err := fs.ReadFile(dir, path)
		if err != nil {
			return fmt.Errorf("records: %w", err)
		}
		if id, e, err := n.read(b); err != nil {
			n.cfg.Log.Warn("a record on disk is passed over", "file", path, "err", err)
		} else {
			n.apply(id, func(entry) entry { return e })
		}
	}
	return nil
}

// read reads the file of a name.
func (n *Names) read(b []byte) (id string, e entry, err error) {
	var f recordFile
	if err := n.cfg.Codec.Unmarshal(b, &f); err != nil {
		return "", e, err
	}
	now := n.cfg.Now()
	seen := earlier(time.UnixMilli(f.Seen), now)
	envelope, err := n.cfg.Verifier.Open(f.Sealed, seen, now)
	if err != nil {
		return "", e, err
	}
	k, err := n.describe(catalog.Record{Envelope: envelope, Sealed: f.Sealed, ETag: f.ETag, SeenAt: seen})
	if err != nil {
		return "", e, err
	}
	k.first, k.statement, k.over = seen, f.Statement, f.Over
	switch {
	case f.Taken:
		k.read = seen
		n.taken[key(k.Kind, k.Name)] = k
	case f.Said:
		k.read, e.said = seen, &k
	default:
		e.heard = &k
	}
	return key(k.Kind, k.Name), e, nil
}
