package registry

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// itemsMax bounds what is known of blobs: some hundred images. tagsMax and proofsMax bound what stays
	// over a start.
	itemsMax, TagsMax, proofsMax = 16384, 4096, 4096
	// ProofFresh is how long a registry's word on a credential counts without being asked again: a pull's
	// length. proofKept is how long it counts while the registry is away.
	ProofFresh, ProofKept = time.Minute, 24 * time.Hour
)

// Item is a blob of a repository.
type Item struct {
	Digest   digest.Digest `cbor:"digest" json:"digest"`
	Size     int64         `cbor:"size" json:"size"`
	Media    string        `cbor:"media" json:"media,omitempty"`
	Manifest bool          `cbor:"manifest" json:"manifest,omitempty"`
	// Ref is the tag or digest of the image that it was asked for as, and Of the manifest that names it.
	Ref string        `cbor:"ref" json:"-"`
	Of  digest.Digest `cbor:"of" json:"-"`
}

// Tag is what a tag stood for.
type Tag struct {
	Item Item      `cbor:"item" json:"item"`
	At   time.Time `cbor:"at" json:"at"`
	// Open says that everybody could read it.
	Open bool `cbor:"open" json:"open"`
}

// proof is that a registry let somebody read.
type proof struct {
	At time.Time `json:"at"`
	// Challenge is what it asks others for.
	Challenge string `json:"challenge,omitempty"`
}

// Known is what this node knows of repositories. Safe for concurrent use.
type Known struct {
	file string
	now  func() time.Time

	items *lru.Cache[string, Item]

	mu      sync.Mutex // guards what follows
	secret  []byte     // credentials are kept under it as sums alone
	tags    *lru.Cache[string, Tag]
	proofs  *lru.Cache[string, proof]
	changed bool
}

// saved is known as a file has it.
type saved struct {
	Secret []byte           `json:"secret"`
	Tags   map[string]Tag   `json:"tags"`
	Proofs map[string]proof `json:"proofs"`
}

// OpenKnown reads a file. Of a damaged one nothing is known, and that it was one is said.
func OpenKnown(file string, now func() time.Time) (*Known, error) {
	k := &Known{file: file, now: now, secret: make([]byte, sha256.Size)}
	var err1, err2, err3 error
	k.items, err1 = lru.New[string, Item](itemsMax)
	k.tags, err2 = lru.New[string, Tag](TagsMax)
	k.proofs, err3 = lru.New[string, proof](proofsMax)
	rand.Read(k.secret)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return k, errors.Join(err1, err2, err3)
	}
	var s saved
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil || len(s.Secret) != sha256.Size {
		return k, fmt.Errorf("what was known of registries, in %s: %w: %w", file, content.ErrCorrupt, err)
	}
	k.secret = s.Secret
	for key, t := range s.Tags {
		k.tags.Add(key, t)
	}
	for key, p := range s.Proofs {
		k.proofs.Add(key, p)
	}
	return k, errors.Join(err1, err2, err3)
}

// Save writes what is to outlast a start, if it has changed.
func (k *Known) Save() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.changed {
		return nil
	}
	s := saved{k.secret, map[string]Tag{}, map[string]proof{}}
	for _, key := range k.tags.Keys() {
		s.Tags[key], _ = k.tags.Peek(key)
	}
	for _, key := range k.proofs.Keys() {
		if p, _ := k.proofs.Peek(key); k.now().Sub(p.At) < ProofKept {
			s.Proofs[key] = p
		}
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = durable.WriteFile(k.file, b, 0o600)
	}
	k.changed = err != nil
	return err
}

// ItemKey is what a blob of a repository is known under.
func ItemKey(p Place, d digest.Digest) string { return p.Registry + " " + p.Repo + " " + string(d) }
func tagKey(p Place, ref string) string       { return p.Registry + " " + p.Repo + " " + ref }

// Enter notes that a blob is one of a repository. What is known of where it belongs stays.
func (k *Known) Enter(p Place, it Item) Item {
	if old, ok := k.items.Get(ItemKey(p, it.Digest)); ok {
		it.Manifest = it.Manifest || old.Manifest
		if it.Ref == "" || IsDigest(it.Ref) && old.Ref != "" {
			it.Ref = old.Ref
		}
		if it.Of == "" {
			it.Of = old.Of
		}
		if it.Media == "" || it.Media == Octets {
			it.Media = old.Media
		}
	}
	k.items.Add(ItemKey(p, it.Digest), it)
	return it
}

// Replace notes that a blob is one of a repository, whatever was known of it.
func (k *Known) Replace(p Place, it Item) { k.items.Add(ItemKey(p, it.Digest), it) }

// Learn notes what a manifest of a repository names.
func (k *Known) Learn(p Place, of Item, m Manifest) {
	if of.Ref == "" {
		of.Ref = of.Digest.String()
	}
	k.Enter(p, of)
	for _, d := range m.Named() {
		it := Item{Digest: d.Digest, Size: d.Size, Media: d.MediaType, Ref: of.Ref, Manifest: m.IsIndex()}
		if !m.IsIndex() {
			it.Of = of.Digest
		}
		k.Enter(p, it)
	}
}

// Item is what is known of a blob of a repository.
func (k *Known) Item(p Place, d digest.Digest) (Item, bool) { return k.items.Get(ItemKey(p, d)) }

// Stands notes what a tag stands for.
func (k *Known) Stands(p Place, ref string, t Tag) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tags.Add(tagKey(p, ref), t)
	k.changed = true
}

// Tag is what a tag stood for.
func (k *Known) Tag(p Place, ref string) (Tag, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tags.Get(tagKey(p, ref))
}

// proofKey is a credential for a repository as it is kept; challengeOf what is kept of all others there.
func (k *Known) proofKey(p Place, credential string) string {
	sum := hmac.New(sha256.New, k.secret)
	fmt.Fprintf(sum, "%s\x00%s\x00%s", p.Registry, p.Repo, credential)
	return hex.EncodeToString(sum.Sum(nil))
}

// Proved notes that a registry let that credential read.
func (k *Known) Proved(p Place, credential string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.proofs.Add(k.proofKey(p, credential), proof{At: k.now()})
	k.changed = true
}

// Refused takes back what was proved with a credential, and keeps what the registry asks for.
func (k *Known) Refused(p Place, credential, challenge string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.proofs.Remove(k.proofKey(p, credential))
	if challenge != "" {
		k.proofs.Add(challengeKeyOf(p), proof{At: k.now(), Challenge: challenge})
	}
	k.changed = true
}

func challengeKeyOf(p Place) string { return "challenge " + p.Registry + " " + p.Repo }

// Challenge is what the registry asked for when it was there; "" where it asked for nothing.
func (k *Known) Challenge(p Place) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, _ := k.proofs.Get(challengeKeyOf(p))
	return c.Challenge
}

// MayRead reports whether a registry let that credential read within some time.
func (k *Known) MayRead(p Place, credential string, within time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	got, ok := k.proofs.Get(k.proofKey(p, credential))
	return ok && k.now().Sub(got.At) < within
}
