package layers

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/origin/content"
)

// entry is of a layer: a file with that text, unless the header says what else it is.
type entry struct {
	tar.Header
	text string
}

func text(name, words string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: 7}, words}
}
func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750}, ""}
}
func link(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func packed(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size = int64(len(e.text))
		err := w.WriteHeader(&e.Header)
		if err == nil {
			_, err = io.WriteString(w, e.text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// flat is what is in the tar file that layers become, by name.
func flat(t testing.TB, layers ...[]byte) (map[string]string, error) {
	t.Helper()
	var all []*io.SectionReader
	for _, b := range layers {
		all = append(all, section(b))
	}
	var out bytes.Buffer
	if err := Flatten(t.Context(), all, &out); err != nil {
		return nil, err
	}
	got := map[string]string{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		switch h.Typeflag {
		case tar.TypeDir:
			text = fmt.Sprintf("dir %o", h.Mode)
		case tar.TypeLink:
			if _, before := got[h.Linkname]; !before {
				t.Errorf("%s is another name of %s, which comes later", h.Name, h.Linkname)
			}
			text = "link " + h.Linkname
		case tar.TypeSymlink:
			text = "symlink " + h.Linkname
		case tar.TypeChar:
			text = fmt.Sprintf("char %d %d", h.Devmajor, h.Devminor)
		}
		if v := h.PAXRecords["SCHILY.xattr.user.note"]; v != "" {
			text += " " + v
		}
		got[h.Name] = text
	}
}

// TestLayers: whiteouts, opaque folders, links and folders of links come out as a container runtime has them.
func TestLayers(t *testing.T) {
	noted := text("etc/noted", "n")
	noted.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "yes"}
	device := entry{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666}, ""}
	for _, c := range []struct {
		name   string
		layers [][]entry
		want   map[string]string
	}{
		{"over each other", [][]entry{{dir("etc"), text("etc/a", "1"), text("etc/b", "1"), noted, device}, {text("etc/a", "22")}},
			map[string]string{"etc/": "dir 750", "etc/a": "22", "etc/b": "1", "etc/noted": "n yes", "dev/null": "char 1 3"}},
		{"whiteouts", [][]entry{{text("a", "1"), text("d/b", "1"), text("d/e/f", "1")}, {text(".wh.a", ""), text("d/.wh.e", ""), text(".wh.nothing", "")}}, map[string]string{"d/b": "1"}},
		{"a whiteout in the layer that has the name anew", [][]entry{{dir("d"), text("d/old", "1")}, {dir("d"), text("d/new", "2"), text(".wh.d", "")}}, map[string]string{"d/": "dir 750", "d/new": "2"}},
		{"an opaque folder, marked at its end", [][]entry{{dir("d"), text("d/a", "1"), text("d/e/b", "1")}, {dir("d"), text("d/c", "2"), text("d/e/g", "2"), text("d/.wh..wh..opq", "")}},
			map[string]string{"d/": "dir 750", "d/c": "2", "d/e/g": "2"}},
		{"of a storage driver", [][]entry{{text(".wh..wh.aufs", ""), text("a", "1")}}, map[string]string{"a": "1"}},
		{"a link keeps what its name loses", [][]entry{{text("z", "old"), link("b", "z")}, {text("z", "new"), link("c", "b")}}, map[string]string{"z": "new", "b": "old", "c": "link b"}},
		{"a link to a lower layer", [][]entry{{text("z", "old")}, {link("a", "/z"), text(".wh.z", "")}}, map[string]string{"a": "old"}},
		{"a folder behind a link", [][]entry{{dir("usr/bin"), symlink("bin", "usr/bin")}, {text("bin/sh", "s"), text("bin/.wh.none", "")}}, map[string]string{"usr/bin/": "dir 750", "bin": "symlink usr/bin", "usr/bin/sh": "s"}},
		{"links lead nowhere else", [][]entry{{symlink("out", "../../../../etc"), symlink("abs", "/srv")}, {text("out/passwd", "x"), text("abs/f", "x")}},
			map[string]string{"out": "symlink ../../../../etc", "abs": "symlink /srv", "etc/passwd": "x", "srv/f": "x"}},
		{"paths lead nowhere else", [][]entry{{text("../../x", "1"), text("/y", "1"), text("./d/../z", "1")}}, map[string]string{"x": "1", "y": "1", "z": "1"}},
		{"a file in place of a folder, and back", [][]entry{{text("a/b", "1"), text("c", "1")}, {text("a", "2"), text("c/d", "2")}}, map[string]string{"a": "2", "c/d": "2"}},
		{"the top", [][]entry{{dir("./"), text("a", "1")}}, map[string]string{"./": "dir 750", "a": "1"}},
	} {
		var layers [][]byte
		for _, l := range c.layers {
			layers = append(layers, packed(t, l...))
		}
		got, err := flat(t, layers...)
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// TestHostileLayers: what can't be is refused, and nothing takes more than its bounds.
func TestHostileLayers(t *testing.T) {
	whole := packed(t, text("a", strings.Repeat("x", 3000)), text("b", "1"))
	var loop, deep []entry
	loop = append(loop, symlink("a", "b"), symlink("b", "a"), text("a/f", "1"))
	for i := range 40 { // each makes the next one's folder 50 deeper, through a link to it
		deep = append(deep, text(fmt.Sprintf("l%d/%s/f", i, strings.Repeat("d/", 50)), "1"), symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d/%s", i, strings.Repeat("d/", 50))))
	}
	for name, layers := range map[string][][]byte{
		"a link to nothing":   {packed(t, link("a", "b"))},
		"a link to itself":    {packed(t, link("a", "a"))},
		"a link to a folder":  {packed(t, dir("d"), link("a", "d"))},
		"links in a loop":     {packed(t, loop...)},
		"folders without end": {packed(t, deep...)},
		"a long path":         {packed(t, text(strings.Repeat("a/", 2100)+"b", "1"))},
		"cut in a file":       {whole[:1500]},
		"cut in a header":     {whole[:700+3072]},
		"no archive":          {[]byte(strings.Repeat("text", 1000))},
	} {
		if got, err := flat(t, layers...); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %d files, %v", name, len(got), err)
		}
	}
}

// archived is an OCI archive of images, each of a platform, with one layer.
func archived(t testing.TB, change func(map[string][]byte), platforms ...string) []byte {
	t.Helper()
	files := map[string][]byte{layoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	blob := func(b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		files["blobs/sha256/"+d.Encoded()] = b
		return ocispec.Descriptor{Digest: d, Size: int64(len(b))}
	}
	document := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var index ocispec.Index
	for _, p := range platforms {
		os, arch, _ := strings.Cut(p, "/")
		m := blob(document(ocispec.Manifest{Config: blob([]byte("{}")), Layers: []ocispec.Descriptor{blob(packed(t, text("of", p)))}}))
		m.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		index.Manifests = append(index.Manifests, m)
	}
	top := blob(document(index))
	top.MediaType = ocispec.MediaTypeImageIndex
	files[ocispec.ImageIndexFile] = document(ocispec.Index{Manifests: []ocispec.Descriptor{top}})
	if change != nil {
		change(files)
	}
	var entries []entry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, text(name, string(files[name])))
	}
	return packed(t, entries...)
}

// TestPlatformIsChosen: that which is asked for is found through indexes, another is named, and bytes that are not what
// their digest says are refused.
func TestPlatformIsChosen(t *testing.T) {
	b := archived(t, nil, "linux/arm64", "linux/riscv64")
	layers, err := Find(bytes.NewReader(b), int64(len(b)), "linux/riscv64")
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	layer, err := io.ReadAll(layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := flat(t, layer); err != nil || got["of"] != "linux/riscv64" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Find(bytes.NewReader(b), int64(len(b)), "linux/s390x"); !errors.Is(err, content.ErrInvalid) || !strings.Contains(err.Error(), "linux/riscv64") {
		t.Errorf("one that it has not: %v", err)
	}
	if _, err := Find(bytes.NewReader(b), int64(len(b)), "arm64"); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("no platform: %v", err)
	}
	for name, change := range map[string]func(map[string][]byte){
		"other bytes": func(files map[string][]byte) {
			for name := range files {
				if strings.HasPrefix(name, "blobs/") {
					files[name] = append([]byte{'x'}, files[name]...)
				}
			}
		},
		"nothing there": func(files map[string][]byte) {
			maps.DeleteFunc(files, func(name string, _ []byte) bool { return strings.HasPrefix(name, "blobs/") })
		},
		"an index of itself": func(files map[string][]byte) {
			files[ocispec.ImageIndexFile] = []byte(`{"manifests":[{"digest":"sha256:../../index.json"}]}`)
		},
		"no index": func(files map[string][]byte) { delete(files, ocispec.ImageIndexFile) },
		"no JSON":  func(files map[string][]byte) { files[ocispec.ImageIndexFile] = []byte("{") },
	} {
		b := archived(t, change, "linux/arm64")
		if layers, err := Find(bytes.NewReader(b), int64(len(b)), ""); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %d layers, %v", name, len(layers), err)
		}
	}
}

// TestOnlyPlatform: an index that does not say what its one image is for leads to no image for something else.
func TestOnlyPlatform(t *testing.T) {
	b := archived(t, func(files map[string][]byte) {
		put := func(b string) ocispec.Descriptor {
			d := ocispec.Descriptor{Digest: digest.FromString(b), Size: int64(len(b))}
			files["blobs/sha256/"+d.Digest.Encoded()] = []byte(b)
			return d
		}
		config := put(`{"os":"linux","architecture":"arm64","variant":"v8"}`)
		m := put(fmt.Sprintf(`{"config":{"digest":%q},"layers":[]}`, config.Digest))
		files[ocispec.ImageIndexFile] = fmt.Appendf(nil, `{"manifests":[{"digest":%q}]}`, m.Digest)
	})
	for platform, fits := range map[string]bool{"": true, "linux/arm64": true, "linux/arm64/v8": true, "linux/amd64": false, "arm64": false} {
		if _, err := Find(bytes.NewReader(b), int64(len(b)), platform); (err == nil) != fits || err != nil && !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v", platform, err)
		}
	}
}

// TestSavedImage: what docker save writes is read too.
func TestSavedImage(t *testing.T) {
	b := packed(t, text("abc/layer.tar", string(packed(t, text("x", "1")))), symlink("def/layer.tar", "../abc/layer.tar"), text(savedFile, `[{"Layers":["abc/layer.tar","def/layer.tar"]}]`), text("repositories", "{}"))
	layers, err := Find(bytes.NewReader(b), int64(len(b)), "")
	if err != nil || len(layers) != 2 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
}

// FuzzFind reads archives that anybody may have written.
func FuzzFind(f *testing.F) {
	f.Add(archived(f, nil, "linux/amd64"))
	f.Fuzz(func(t *testing.T, b []byte) {
		layers, err := Find(bytes.NewReader(b), int64(len(b)), "linux/amd64")
		if err != nil {
			return
		}
		var all []*io.SectionReader
		for _, l := range layers {
			all = append(all, io.NewSectionReader(l, 0, l.Size()))
		}
		_ = Flatten(t.Context(), all, io.Discard)
	})
}
