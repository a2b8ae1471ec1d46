package oci

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// octets is the type of what nobody knows better.
	octets = "application/octet-stream"
	// namesMax bounds what one manifest names: those of large images have some hundred.
	namesMax = 4096
	// mediaMax bounds a media type, in bytes: those of thousands of blobs are kept in memory. RFC 6838 has two parts of
	// 127 at most.
	mediaMax = 255
)

// manifest is what both images and indexes have, as far as others are named in it.
type manifest struct {
	MediaType string               `json:"mediaType"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Subject   *ocispec.Descriptor  `json:"subject"`
	Type      string               `json:"artifactType"`
	Notes     map[string]string    `json:"annotations"`
}

// parseManifest reads a manifest or index, which anybody may have written.
func parseManifest(b []byte) (m manifest, err error) {
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", content.ErrInvalid, err)
	}
	all := m.named()
	if len(all) > namesMax {
		return m, fmt.Errorf("manifest: %w: it names %d others, and may name %d", content.ErrInvalid, len(all), namesMax)
	}
	for _, d := range all {
		if err := checkDigest(d.Digest); err != nil {
			return m, fmt.Errorf("manifest: %w", err)
		}
		if d.Size < 0 || len(d.MediaType) > mediaMax {
			return m, fmt.Errorf("manifest: %w: %s has %d bytes, and a media type of %d", content.ErrInvalid, d.Digest, d.Size, len(d.MediaType))
		}
	}
	if len(m.MediaType) > mediaMax {
		return m, fmt.Errorf("manifest: %w: its media type has %d bytes", content.ErrInvalid, len(m.MediaType))
	}
	return m, nil
}

// isIndex tells an index from an image.
func (m manifest) isIndex() bool { return m.Config == nil }

// media is the type of a manifest, which not all of them say.
func (m manifest) media() string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.isIndex():
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

// named are all that it names, layers of other places aside, which no registry has.
func (m manifest) named() (out []ocispec.Descriptor) {
	if m.Config != nil {
		out = append(out, *m.Config)
	}
	for _, l := range m.Layers {
		if len(l.URLs) == 0 {
			out = append(out, l)
		}
	}
	return append(out, m.Manifests...)
}

// names reports whether a manifest has another in it.
func (m manifest) names(d digest.Digest) bool {
	for _, other := range m.Manifests {
		if other.Digest == d {
			return true
		}
	}
	return false
}

// learn notes what a manifest of a repository names.
func (k *known) learn(p place, of item, m manifest) {
	if of.Ref == "" {
		of.Ref = of.Digest.String()
	}
	k.enter(p, of)
	for _, d := range m.named() {
		it := item{Digest: d.Digest, Size: d.Size, Media: d.MediaType, Ref: of.Ref, Manifest: m.isIndex()}
		if !m.isIndex() {
			it.Of = of.Digest
		}
		k.enter(p, it)
	}
}
