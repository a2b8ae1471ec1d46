// Package layers makes one tree of files of a container image: the layers of an OCI archive, or of what `docker save`
// writes, are laid over each other as container runtimes do, with whiteouts, opaque folders and links, and written as one
// tar file. Nothing is unpacked into a file system on the way. Layers are inflated by the caller.
package layers

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// membersMax bounds the files of an archive, documentMax a manifest in it, in bytes, layersMax the layers of an
	// image, and depthMax the indexes that lead to one.
	membersMax, documentMax, layersMax, depthMax = 1 << 16, 4 << 20, 512, 4
	// layoutFile and savedFile are what the two kinds of archives have.
	layoutFile, savedFile = ocispec.ImageLayoutFile, "manifest.json"
)

// Layer is a part of an archive, compressed or not.
type Layer struct {
	*io.SectionReader
	// Name is its digest, or path.
	Name string
}

// archive is what lies where in a tar file.
type archive struct {
	members map[string]*io.SectionReader
}

// IsImage reports whether a tar file with a member of this name is an archive of a container image.
func IsImage(member string) bool { return member == layoutFile || member == "repositories" }

// Find returns the layers of the image of a platform, as linux/arm64, that a tar file has, the lowest first.
// The host's platform is taken where none is given.
func Find(file io.ReaderAt, size int64, platform string) ([]Layer, error) {
	a, err := read(file, size)
	if err != nil {
		return nil, err
	}
	var layers []Layer
	if a.members[ocispec.ImageIndexFile] != nil {
		layers, err = a.ofLayout(platform)
	} else {
		layers, err = a.ofSaved()
	}
	if err == nil && len(layers) > layersMax {
		err = fmt.Errorf("%w: it has %d layers, and may have %d", content.ErrInvalid, len(layers), layersMax)
	}
	return layers, err
}

// read finds what is in a tar file.
func read(file io.ReaderAt, size int64) (*archive, error) {
	a := &archive{members: map[string]*io.SectionReader{}}
	in := io.NewSectionReader(file, 0, size)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the archive is cut short or damaged: %w", content.ErrInvalid, err)
		}
		at, _ := in.Seek(0, io.SeekCurrent) // which can't fail
		name := path.Clean(h.Name)
		switch {
		case h.Typeflag == tar.TypeReg:
			a.members[name] = io.NewSectionReader(file, at, h.Size)
		case h.Typeflag == tar.TypeSymlink && a.members[path.Join(path.Dir(name), h.Linkname)] != nil: // older docker
			a.members[name] = a.members[path.Join(path.Dir(name), h.Linkname)]
		}
		if len(a.members) > membersMax {
			return nil, fmt.Errorf("%w: the archive has more than %d files", content.ErrInvalid, membersMax)
		}
	}
}

// document reads a member as JSON.
func (a *archive) document(name string, into any) error {
	m := a.members[name]
	if m == nil {
		return fmt.Errorf("%w: the archive has no %.100q", content.ErrInvalid, name)
	}
	if m.Size() > documentMax {
		return fmt.Errorf("%w: %.100q has %d bytes", content.ErrInvalid, name, m.Size())
	}
	b := make([]byte, m.Size())
	_, err := m.ReadAt(b, 0)
	if err == nil || errors.Is(err, io.EOF) {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("%w: %.100q: %w", content.ErrInvalid, name, err)
	}
	return nil
}

// blob is where a layout has something; its bytes are what its digest says.
func (a *archive) blob(d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("%w: digest %.80q; want one of SHA-256", content.ErrInvalid, d.Digest)
	}
	name := path.Join(ocispec.ImageBlobsDir, "sha256", d.Digest.Encoded())
	m := a.members[name]
	if m == nil {
		return "", fmt.Errorf("%w: the archive lacks %s", content.ErrInvalid, d.Digest)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(m, 0, m.Size())); err != nil {
		return "", err
	}
	if digest.NewDigest(digest.SHA256, sum) != d.Digest {
		return "", fmt.Errorf("%w: the bytes of %s are others", content.ErrInvalid, d.Digest)
	}
	return name, nil
}

// ofLayout follows the indexes of an OCI layout to an image.
func (a *archive) ofLayout(platform string) ([]Layer, error) {
	name := ocispec.ImageIndexFile
	for range depthMax {
		var index struct {
			Manifests []ocispec.Descriptor `json:"manifests"`
			Layers    []ocispec.Descriptor `json:"layers"`
			Config    *ocispec.Descriptor  `json:"config"`
		}
		if err := a.document(name, &index); err != nil {
			return nil, err
		}
		if index.Config != nil {
			if err := a.suits(*index.Config, platform); err != nil {
				return nil, err
			}
			return a.layers(index.Layers)
		}
		one, err := Choose(index.Manifests, platform)
		if err == nil {
			name, err = a.blob(one)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: more than %d indexes lead to its image", content.ErrInvalid, depthMax)
}

// suits refuses an image of another platform than was asked for, which only its configuration may tell.
func (a *archive) suits(config ocispec.Descriptor, platform string) error {
	if platform == "" {
		return nil
	}
	var is ocispec.Platform
	name, err := a.blob(config)
	if err == nil {
		err = a.document(name, &is)
	}
	if err != nil || is.OS == "" || is.Architecture == "" { // no container's
		return err
	}
	_, err = Choose([]ocispec.Descriptor{{Platform: &is}}, platform)
	return err
}

// Choose returns the manifest of a platform, as linux/arm64; of the host's, or the only one, where none is given.
func Choose(all []ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	want := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if platform != "" {
		parts := append(strings.Split(platform, "/"), "")
		if want = (ocispec.Platform{OS: parts[0], Architecture: parts[1]}); len(parts) == 4 {
			want.Variant = parts[2]
		} else if len(parts) != 3 {
			return ocispec.Descriptor{}, fmt.Errorf("%w: platform %.40q; want OS/ARCHITECTURE, as linux/arm64", content.ErrInvalid, platform)
		}
	}
	var fits []ocispec.Descriptor
	var has []string
	for _, d := range all {
		p := d.Platform
		if p == nil || p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || p.Variant == want.Variant) {
			fits = append(fits, d)
		}
		if p != nil && p.OS != "unknown" {
			has = append(has, strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
		}
	}
	if len(fits) == 0 && len(all) == 1 && platform == "" { // of another platform, which is all there is
		fits = all
	}
	switch {
	case len(fits) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%w: it has no image for %s/%s; choose with --platform one of %s", content.ErrInvalid, want.OS, want.Architecture, strings.Join(has, ", "))
	case len(fits) > 1 && want.Variant == "" && fits[0].Platform != nil: // several variants: the first is the most general
	case len(fits) > 1:
		return ocispec.Descriptor{}, fmt.Errorf("%w: it has %d images; write one of them into an archive of its own", content.ErrInvalid, len(fits))
	}
	return fits[0], nil
}

func (a *archive) layers(all []ocispec.Descriptor) (out []Layer, err error) {
	for _, d := range all {
		name, err := a.blob(d)
		if err != nil {
			return nil, err
		}
		out = append(out, Layer{a.members[name], d.Digest.String()})
	}
	return out, nil
}

// ofSaved reads what docker save writes.
func (a *archive) ofSaved() (out []Layer, err error) {
	var images []struct{ Layers []string }
	if err := a.document(savedFile, &images); err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%w: it has %d images; save one of them alone", content.ErrInvalid, len(images))
	}
	for _, name := range images[0].Layers {
		m := a.members[path.Clean(name)]
		if m == nil {
			return nil, fmt.Errorf("%w: the archive lacks layer %.100q", content.ErrInvalid, name)
		}
		out = append(out, Layer{m, path.Clean(name)})
	}
	return out, nil
}

// Flatten writes the files of layers, each a tar file as it is, the lowest first, as one tar file.
func Flatten(ctx context.Context, all []*io.SectionReader, out io.Writer) error {
	t := &stack{layers: all, root: &node{}}
	for i := range all {
		if err := t.lay(ctx, i); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(all), err)
		}
	}
	w := tar.NewWriter(out)
	if err := t.write(ctx, w, t.root, "", make([]byte, copySize)); err != nil {
		return err
	}
	return w.Close()
}

// sorted are the names in a folder.
func (n *node) sorted() []string {
	out := make([]string, 0, len(n.kids))
	for name := range n.kids {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
