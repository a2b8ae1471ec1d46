package registry

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// Octets is the type of what nobody knows better.
	Octets = "application/octet-stream"
	// NamesMax bounds what one manifest names: those of large images have some hundred.
	NamesMax = 4096
	// MediaMax bounds a media type, in bytes: those of thousands of blobs are kept in memory. RFC 6838 has two parts of
	// 127 at most.
	MediaMax = 255
)

// Manifest is what both images and indexes have, as far as others are named in it.
type Manifest struct {
	MediaType string               `json:"mediaType"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Subject   *ocispec.Descriptor  `json:"subject"`
	Type      string               `json:"artifactType"`
	Notes     map[string]string    `json:"annotations"`
}

// ParseManifest reads a manifest or index, which anybody may have written.
func ParseManifest(b []byte) (m Manifest, err error) {
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", content.ErrInvalid, err)
	}
	all := m.Named()
	if len(all) > NamesMax {
		return m, fmt.Errorf("manifest: %w: it names %d others, and may name %d", content.ErrInvalid, len(all), NamesMax)
	}
	for _, d := range all {
		if err := CheckDigest(d.Digest); err != nil {
			return m, fmt.Errorf("manifest: %w", err)
		}
		if d.Size < 0 || len(d.MediaType) > MediaMax {
			return m, fmt.Errorf("manifest: %w: %s has %d bytes, and a media type of %d", content.ErrInvalid, d.Digest, d.Size, len(d.MediaType))
		}
	}
	if len(m.MediaType) > MediaMax {
		return m, fmt.Errorf("manifest: %w: its media type has %d bytes", content.ErrInvalid, len(m.MediaType))
	}
	return m, nil
}

// IsIndex tells an index from an image.
func (m Manifest) IsIndex() bool { return m.Config == nil }

// Media is the type of a manifest, which not all of them say.
func (m Manifest) Media() string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.IsIndex():
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

// Named are all that it names, layers of other places aside, which no registry has.
func (m Manifest) Named() (out []ocispec.Descriptor) {
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

// Names reports whether a manifest has another in it.
func (m Manifest) Names(d digest.Digest) bool {
	for _, other := range m.Manifests {
		if other.Digest == d {
			return true
		}
	}
	return false
}
