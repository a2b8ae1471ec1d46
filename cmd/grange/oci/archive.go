package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"cuelabs.dev/go/oci/ociregistry/ociclient"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/layers"
)

const (
	// manifestMax bounds a manifest, in bytes.
	manifestMax = 4 << 20
	// hub is where docker.io is.
	hub = "registry-1.docker.io"
)

// Archive reads an image of a platform from its registry, as an OCI archive.
func Archive(ctx context.Context, reference, platform string, plain bool) (io.ReadCloser, error) {
	ref, err := ociref.Parse(reference)
	if err != nil {
		return nil, fmt.Errorf("%w: oci:%s: %w; want REGISTRY/REPOSITORY:TAG, as docker.io/library/debian:12", ask.ErrUsage, reference, err)
	}
	registry, err := open(ref.Host, plain)
	if err != nil {
		return nil, err
	}
	i := &image{registry: registry, repo: ref.Repository}
	if err := i.find(ctx, ref, platform); err != nil {
		return nil, fmt.Errorf("oci:%s: %w", reference, err)
	}
	r, w := io.Pipe()
	go func() {
		err := i.write(ctx, w)
		if err != nil {
			err = fmt.Errorf("oci:%s: %w", reference, err)
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// open is a registry, with the credentials that docker's config file has for it.
func open(host string, plain bool) (ociregistry.Interface, error) {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	if plain = plain || name == "localhost" || net.ParseIP(name).IsLoopback(); host == "docker.io" {
		host = hub
	}
	config, err := ociauth.Load(ociauth.ExecHelper)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", host, err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	return ociclient.New(host, &ociclient.Options{Insecure: plain, Transport: ociauth.NewStdTransport(ociauth.StdTransportParams{Config: credentials{config}, Transport: transport})})
}

// credentials are those of docker's config file, where Docker Hub has another name.
type credentials struct{ ociauth.Config }

// EntryForRegistry implements ociauth.Config.
func (c credentials) EntryForRegistry(host string) (ociauth.ConfigEntry, error) {
	if host == hub {
		host = "index.docker.io"
	}
	return c.Config.EntryForRegistry(host)
}

// image is one of a registry.
type image struct {
	registry ociregistry.Interface
	repo     string
	top      ocispec.Descriptor
	text     []byte // of its manifest
	parts    []ocispec.Descriptor
}

// find follows a reference to the manifest of a platform.
func (i *image) find(ctx context.Context, ref ociref.Reference, platform string) error {
	d, err := ociregistry.Descriptor{Digest: ref.Digest}, error(nil)
	if ref.Digest == "" {
		tag := ref.Tag
		if tag == "" {
			tag = "latest"
		}
		d, err = i.registry.ResolveTag(ctx, i.repo, tag)
	}
	for depth := 0; err == nil; depth++ {
		var m struct {
			Config    *ocispec.Descriptor  `json:"config"`
			Layers    []ocispec.Descriptor `json:"layers"`
			Manifests []ocispec.Descriptor `json:"manifests"`
		}
		if err = i.read(ctx, d, &m); err != nil {
			return err
		}
		if m.Config != nil {
			i.parts = append(m.Layers, *m.Config)
			for _, part := range i.parts { // a registry says what it likes
				if err := part.Digest.Validate(); err != nil {
					return fmt.Errorf("%w: digest %.80q: %w", content.ErrInvalid, part.Digest, err)
				}
			}
			return nil
		}
		if depth > 2 {
			return fmt.Errorf("%w: indexes of indexes lead to it", content.ErrInvalid)
		}
		d, err = layers.Choose(m.Manifests, platform)
	}
	return err
}

// read reads a manifest.
func (i *image) read(ctx context.Context, d ocispec.Descriptor, into any) error {
	r, err := i.registry.GetManifest(ctx, i.repo, d.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	if i.text, err = io.ReadAll(io.LimitReader(r, manifestMax+1)); err != nil {
		return err
	}
	if len(i.text) > manifestMax || digest.FromBytes(i.text) != d.Digest {
		return fmt.Errorf("%w: the manifest is not what its digest says, or larger than %d bytes", content.ErrInvalid, manifestMax)
	}
	i.top = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d.Digest, Size: int64(len(i.text))}
	return json.Unmarshal(i.text, into)
}

// write writes the archive.
func (i *image) write(ctx context.Context, out io.Writer) error {
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{i.top}})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	put := func(name string, size int64, from io.Reader) error {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
		if err == nil {
			_, err = io.Copy(w, from)
		}
		return err
	}
	layout := `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`
	err = put(ocispec.ImageLayoutFile, int64(len(layout)), strings.NewReader(layout))
	if err == nil {
		err = put(ocispec.ImageIndexFile, int64(len(index)), bytes.NewReader(index))
	}
	if err == nil {
		err = put(place(i.top), i.top.Size, bytes.NewReader(i.text))
	}
	had := map[digest.Digest]bool{}
	for _, d := range i.parts {
		if err != nil || had[d.Digest] {
			continue
		}
		had[d.Digest] = true
		var r ociregistry.BlobReader
		if r, err = i.registry.GetBlob(ctx, i.repo, d.Digest); err == nil {
			err = put(place(d), d.Size, r)
			r.Close()
		}
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// place is where a layout has something.
func place(d ocispec.Descriptor) string {
	return path.Join(ocispec.ImageBlobsDir, string(d.Digest.Algorithm()), d.Digest.Encoded())
}
