package registry

import (
	"fmt"
	"strings"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/origin/content"
)

// Place is a repository of a registry; of the mesh's own where that is "".
type Place struct {
	Registry string `cbor:"registry"`
	Repo     string `cbor:"repo"`
}

func (p Place) String() string { return p.Prefix() }

// Prefix is what the names of its images begin with. A port stands behind an underscore, which no
// host has.
func (p Place) Prefix() string {
	if p.Registry == "" {
		return p.Repo
	}
	return strings.ReplaceAll(p.Registry, ":", "_") + "/" + p.Repo
}

// Name is that of the tree of an image, by a tag or digest of it.
func (p Place) Name(ref string) (string, error) {
	name := p.Prefix() + ":" + strings.Replace(ref, ":", "-", 1)
	return name, content.KindTree.CheckName(name)
}

// Check refuses what no registry has: it goes into URLs, and comes from clients and members.
func (p Place) Check() error {
	if p.Registry != "" && !ociref.IsValidHost(p.Registry) || !ociref.IsValidRepository(p.Repo) {
		return fmt.Errorf("repository %.80q of registry %.80q: %w", p.Repo, p.Registry, content.ErrInvalid)
	}
	return nil
}

// CheckDigest refuses other digests than SHA-256: no registry needs them, and each would have to be
// computed of all bytes.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.80q: %w: want sha256: and 64 hexadecimal digits", d, content.ErrInvalid)
	}
	return nil
}

// IsDigest tells a digest from a tag.
func IsDigest(ref string) bool { return strings.Contains(ref, ":") }
