package records

import (
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// entryFile is an entry on disk. What was heard is kept as that: a restart makes
// nobody's word the origin's.
type entryFile struct {
	Said  *recordFile `cbor:"said"`
	Heard *recordFile `cbor:"heard"`
	Taken *recordFile `cbor:"taken"`
}

type recordFile struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
	// Seen is when it was seen first, by which a signer that was revoked later is
	// believed.
	Seen      int64        `cbor:"seen"`
	Statement []byte       `cbor:"statement"`
	Over      string       `cbor:"over"`
	Against   trust.Commit `cbor:"against"`
	Doubt     string       `cbor:"doubt"`
	Unproved  bool         `cbor:"unproved"`
}

// keeps reports whether the file has of the entry what matters after a restart.
func (e entry) keeps(other entry) bool {
	same := func(a, b *Known) bool {
		return a == b || a != nil && b != nil && a.Commit == b.Commit && a.ETag == b.ETag && a.against == b.against && a.unproved == b.unproved
	}
	return same(e.said, other.said) && same(e.heard, other.heard) && same(e.taken, other.taken)
}

// save brings the piece of a name to what memory has. A failure costs the name only
// while the origin is away, so it is logged and not returned. Called with mu.
func (n *Names) save(id string, e entry) {
	p := piece{ID: id, Links: e.links()}
	var err error
	if !e.isVoid() {
		for _, k := range []*Known{e.said, e.heard} {
			if k != nil && k.Head != nil {
				p.Maps = append(p.Maps, k.Head.Root.Map)
			}
		}
		p.Body, err = n.cfg.Codec.Marshal(entryFile{e.said.file(), e.heard.file(), e.taken.file()})
	}
	if err == nil {
		err = n.index.put(p)
	}
	if err != nil {
		n.cfg.Log.Warn("what is known of a name is not kept on disk", "name", id, "err", err)
	}
}

func (k *Known) file() *recordFile {
	if k == nil {
		return nil
	}
	return &recordFile{k.Sealed, k.ETag, k.first.UnixMilli(), k.statement, k.over, k.against, k.Doubt, k.unproved}
}

// entry returns what is known of a name, from memory or else from disk, where it was
// checked before it was written. Called with mu.
func (n *Names) entry(id string) entry {
	if e, ok := n.entries.Get(id); ok {
		return e
	}
	b, err := n.index.get(id)
	if err == nil && b == nil {
		return entry{}
	}
	var f entryFile
	if err == nil {
		err = n.cfg.Codec.Unmarshal(b, &f)
	}
	if err != nil {
		n.cfg.Log.Warn("what is known of a name can't be read on disk", "name", id, "err", err)
		return entry{}
	}
	var e entry
	for _, r := range []struct {
		file *recordFile
		to   **Known
	}{{f.Said, &e.said}, {f.Heard, &e.heard}, {f.Taken, &e.taken}} {
		if r.file == nil {
			continue
		}
		k, err := n.reopen(*r.file, r.file != f.Heard)
		if err != nil {
			n.cfg.Log.Warn("a record on disk is passed over", "name", id, "err", err)
			e.partial = true
			continue
		}
		*r.to = &k
	}
	if a, ok := n.answers.Get(id); ok {
		e = e.resumed(a)
	}
	n.entries.Add(id, e)
	return e
}

// reopen returns the record of a file; atOrigin is for one that this node has seen there
// itself.
func (n *Names) reopen(f recordFile, atOrigin bool) (Known, error) {
	now := n.cfg.Now()
	seen := earlier(time.UnixMilli(f.Seen), now)
	envelope, err := n.cfg.Verifier.Reopen(f.Sealed, seen, now)
	if err != nil {
		return Known{}, err
	}
	k, err := n.describe(catalog.Record{Envelope: envelope, Sealed: f.Sealed, ETag: f.ETag, SeenAt: seen})
	k.first, k.statement, k.over, k.against, k.Doubt, k.unproved = seen, f.Statement, f.Over, f.Against, f.Doubt, f.Unproved
	if atOrigin {
		k.read = seen
	}
	return k, err
}

// answered is what counts of a name, as it was last looked for: less than an entry, so
// that many more fit into memory.
type answered struct {
	Resolved
	commit            trust.Commit
	seen, read, asked int64 // nanoseconds since 1970: when it was seen at the origin, here, and looked for
}

// resumed gives an entry from disk back the time of its last look.
func (e entry) resumed(a answered) entry {
	if e.isEmpty() || e.answer().Commit != a.commit {
		return e
	}
	e.checked = time.Unix(0, a.asked)
	if e.heard == nil {
		k := *e.said
		k.read, k.SeenAt, k.Confirmed, k.Doubt = time.Unix(0, a.read), time.Unix(0, a.seen), a.Confirmed, a.Warning
		e.said = &k
	}
	return e
}

// learnHeld has those names learnt whose content is here in part.
func (n *Names) learnHeld(ids []string) {
	for _, id := range ids {
		n.mu.Lock()
		e := n.entry(id)
		n.mu.Unlock()
		n.learn(e)
	}
}

// learn passes on what a name stands for, as far as there is anything of it to be had
// here: who opens it learns it anyway.
func (n *Names) learn(e entry) {
	if e.isEmpty() {
		return
	}
	if k := e.answer(); k.Head != nil && n.cfg.Holds(k.Head.Root.Map) {
		n.cfg.Learn(k)
	}
}

// Recall returns a record as the origin last showed it to this node, also when it is
// gone since: what a catalog.Config asks for.
func (n *Names) Recall(kind content.Kind, name string) (catalog.Record, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch e := n.entry(key(kind, name)); {
	case e.said != nil:
		return e.said.Record, true
	case e.taken != nil:
		return e.taken.Record, true
	}
	return catalog.Record{}, false
}
