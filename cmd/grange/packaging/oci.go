package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// user is who the node is in its image, unless it is run as another.
const user = 65532

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// layout is an OCI layout that is being written.
type layout []entry

func (l *layout) blob(mediaType string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	name := "blobs/sha256/" + sum
	if !slices.ContainsFunc(*l, func(e entry) bool { return e.name == name }) {
		*l = append(*l, entry{name: name, mode: 0o644, data: data})
	}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
}

func (l *layout) document(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	return l.blob(mediaType, b), err
}

// image makes the image of the Linux targets, one index, as an archive of the OCI layout.
func (r release) image(targets []string) error {
	l := &layout{{name: "oci-layout", mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {name: "blobs", mode: 0o755}, {name: "blobs/sha256", mode: 0o755}}
	var manifests []descriptor
	for _, target := range targets {
		if processor, linux := strings.CutPrefix(target, "linux/"); linux {
			m, err := r.manifest(l, processor)
			if err != nil {
				return err
			}
			manifests = append(manifests, m)
		}
	}
	if len(manifests) == 0 {
		return nil
	}
	const index = "application/vnd.oci.image.index.v1+json"
	all, err := l.document(index, map[string]any{"schemaVersion": 2, "mediaType": index, "manifests": manifests})
	if err != nil {
		return err
	}
	all.Annotations = map[string]string{"org.opencontainers.image.ref.name": strings.ReplaceAll(r.version, "~", "-")}
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": index, "manifests": []descriptor{all}})
	if err != nil {
		return err
	}
	*l = append(*l, entry{name: "index.json", mode: 0o644, data: top})
	packed, err := pack(*l, r.made)
	return errors.Join(err, os.WriteFile(filepath.Join(r.out, "grange_"+r.version+"_oci.tar"), packed, 0o644))
}

// manifest adds the image of a processor: one layer, from scratch.
func (r release) manifest(l *layout, processor string) (descriptor, error) {
	files, err := r.root(processor)
	if err != nil {
		return descriptor{}, err
	}
	unpacked, err := pack(files, r.made)
	if err != nil {
		return descriptor{}, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write(unpacked)
	if err := errors.Join(err, w.Close()); err != nil {
		return descriptor{}, err
	}
	layer := l.blob("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes())
	made := r.made.Format(time.RFC3339)
	config, err := l.document("application/vnd.oci.image.config.v1+json", map[string]any{
		"created": made, "architecture": processor, "os": "linux",
		"config": map[string]any{
			"Entrypoint": []string{"/usr/bin/grange"}, "Cmd": []string{"node"}, "User": fmt.Sprintf("%d:%d", user, user), "WorkingDir": "/var/lib/grange",
			"Env":     []string{"PATH=/usr/bin", "HOME=/var/lib/grange", "GRANGE_DATA=/var/lib/grange"},
			"Volumes": map[string]any{"/var/lib/grange": struct{}{}}, "ExposedPorts": map[string]any{"4001/tcp": struct{}{}, "4001/udp": struct{}{}},
			"Labels": map[string]string{"org.opencontainers.image.source": "https://github.com/grangemesh/grange", "org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.version": r.version},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(unpacked))}},
		"history": []map[string]string{{"created": made, "created_by": "make packages"}},
	})
	if err != nil {
		return descriptor{}, err
	}
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	d, err := l.document(manifest, map[string]any{"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": []descriptor{layer}})
	d.Platform = &platform{processor, "linux"}
	return d, err
}

// root is all that the image has: the program, the authorities that it trusts, and folders
// that it writes to.
func (r release) root(processor string) ([]entry, error) {
	binary, err := os.ReadFile(filepath.Join(r.dir("linux/"+processor), "grange"))
	var authorities bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil { // a file of certificates can't say more of one than that it is trusted
			err = errors.Join(err, pem.Encode(&authorities, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	names := fmt.Sprintf("root:x:0:0::/:/\ngrange:x:%d:%d::/var/lib/grange:/\n", user, user)
	return []entry{
		{name: "etc", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, data: []byte(names)},
		{name: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\ngrange:x:%d:\n", user)},
		{name: "etc/ssl", mode: 0o755},
		{name: "etc/ssl/certs", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: authorities.Bytes()},
		{name: "tmp", mode: 0o1777},
		{name: "usr", mode: 0o755},
		{name: "usr/bin", mode: 0o755},
		{name: "usr/bin/grange", mode: 0o755, data: binary},
		{name: "var", mode: 0o755},
		{name: "var/lib", mode: 0o755},
		{name: "var/lib/grange", mode: 0o700, uid: user},
	}, err
}
