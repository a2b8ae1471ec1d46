package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociclient"
	"github.com/cenkalti/backoff/v5"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

const (
	// door is where each node serves images, and registryPort where the registry does.
	door         = "127.0.0.1:5050"
	registryPort = 5000
)

// world is a farm and a registry.
type world struct {
	*lab.Lab
	host  *netns.Host // of the registry
	serve *exec.Cmd
	dir   string // of the registry
	nodes []*lab.Node
	name  string // that clients call the registry
	token string // that clients show the registry as "user:password", "" for none
}

func newWorld(tb testing.TB, nodes int, htpasswd string) *world {
	tb.Helper()
	dir := tb.TempDir()
	l, err := lab.New(tb.Context(), lab.Command(), dir)
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{Lab: l, dir: filepath.Join(dir, "registry")}
	tb.Cleanup(func() {
		if tb.Failed() {
			for _, n := range l.Nodes() {
				tb.Logf("── %s\n%s", n.Name, n.Tail(15))
			}
		}
		w.stop()
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	if w.host, err = l.Net.Host(tb.Context(), "registry"); err != nil {
		tb.Fatal(err)
	}
	w.name = fmt.Sprintf("%s:%d", w.host.Addr(), registryPort)
	w.start(tb, htpasswd)
	for i := range nodes {
		origin := ""
		if i == 0 {
			origin = "file://" + filepath.Join(dir, "origin")
			if err := os.Mkdir(filepath.Join(dir, "origin"), 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		n, err := l.Start(tb.Context(), "main", origin, "--oci", door, "--oci-upstream", w.name+"=http://"+w.name)
		if err != nil {
			tb.Fatal(err)
		}
		w.nodes = append(w.nodes, n)
	}
	return w
}

// start starts Debian's registry, whose log says what was asked.
func (w *world) start(tb testing.TB, htpasswd string) {
	tb.Helper()
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/blobs}}\nhttp: {addr: \"%s\"}\n", w.dir, w.name)
	if htpasswd != "" {
		if err := os.WriteFile(filepath.Join(w.dir, "htpasswd"), []byte(htpasswd), 0o600); err != nil {
			tb.Fatal(err)
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: source, path: %s/htpasswd}}\n", w.dir)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "config.yml"), []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	w.serve = w.host.Command(tb.Context(), "docker-registry", "serve", filepath.Join(w.dir, "config.yml"))
	w.serve.Stdout, w.serve.Stderr = log, log
	w.serve.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.serve.Start(); err != nil {
		tb.Fatal(err)
	}
	until(tb, "the registry is there", func() error {
		c, err := w.host.Dial(tb.Context(), "tcp", w.name)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (w *world) stop() {
	if w.serve != nil {
		w.serve.Process.Kill()
		w.serve.Wait() // it was killed
		w.serve = nil
	}
}

// until waits for something.
func until(tb testing.TB, what string, is func() error) {
	tb.Helper()
	_, err := backoff.Retry(tb.Context(), func() (struct{}, error) { return struct{}{}, is() }, backoff.WithBackOff(backoff.NewConstantBackOff(50*time.Millisecond)), backoff.WithMaxElapsedTime(time.Minute))
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

// client is of the registry itself.
func (w *world) client(tb testing.TB) ociregistry.Interface {
	tb.Helper()
	transport := &http.Transport{DialContext: w.host.Dial}
	tb.Cleanup(transport.CloseIdleConnections)
	c, err := ociclient.New(w.name, &ociclient.Options{Insecure: true, Transport: shown{transport, w.token}})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// shown is a transport that shows a credential.
type shown struct {
	http.RoundTripper
	token string
}

func (s shown) RoundTrip(r *http.Request) (*http.Response, error) {
	if user, password, ok := strings.Cut(s.token, ":"); ok {
		r = r.Clone(r.Context())
		r.SetBasicAuth(user, password)
	}
	return s.RoundTripper.RoundTrip(r)
}

// layer is a compressed archive of one file of that many random bytes.
func layer(tb testing.TB, name string, size int) (compressed []byte, diff digest.Digest) {
	tb.Helper()
	var out, plain bytes.Buffer
	t := tar.NewWriter(&plain)
	b := make([]byte, size)
	rand.Read(b)
	err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(size), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = t.Write(b)
	}
	if err == nil {
		err = t.Close()
	}
	z, _ := gzip.NewWriterLevel(&out, gzip.HuffmanOnly)
	if err == nil {
		_, err = z.Write(plain.Bytes())
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return out.Bytes(), digest.FromBytes(plain.Bytes())
}

// publish puts an image into the registry, and returns all of its blobs but the manifest, and that.
func (w *world) publish(tb testing.TB, repo, tag string, sizes ...int) (blobs []ocispec.Descriptor, top digest.Digest) {
	tb.Helper()
	c := w.client(tb)
	push := func(b []byte, media string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if _, err := c.PushBlob(tb.Context(), repo, d, bytes.NewReader(b)); err != nil {
			tb.Fatal(err)
		}
		blobs = append(blobs, d)
		return d
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i, size := range sizes {
		b, diff := layer(tb, fmt.Sprintf("file%d", i), size)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
		m.Layers = append(m.Layers, push(b, ocispec.MediaTypeImageLayerGzip))
	}
	b, err := json.Marshal(config)
	if err != nil {
		tb.Fatal(err)
	}
	m.Config = push(b, ocispec.MediaTypeImageConfig)
	if b, err = json.Marshal(m); err == nil {
		_, err = c.PushManifest(tb.Context(), repo, tag, b, m.MediaType)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return blobs, digest.FromBytes(b)
}

// sent is how often the registry was asked for the bytes of something.
func (w *world) sent(tb testing.TB, id digest.Digest) (n int) {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "log"))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"GET `) && strings.Contains(line, string(id)) {
			n++
		}
	}
	return n
}

// runtime is a containerd on the host of a node.
type runtime struct {
	node     *lab.Node
	dir      string
	registry string
}

// containerd starts one, with a root, state and socket of its own, told of the node by grange oci configure.
func (w *world) containerd(tb testing.TB, n *lab.Node) *runtime {
	tb.Helper()
	r := &runtime{n, filepath.Join(w.Dir, "containerd-"+n.Name), w.name}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if _, err := n.Run(tb.Context(), "oci", "configure", "--certs-dir", filepath.Join(r.dir, "certs"), "--address", door); err != nil {
		tb.Fatal(err)
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = %q\n", filepath.Join(r.dir, "root"), filepath.Join(r.dir, "state"), r.socket())
	if err := os.WriteFile(filepath.Join(r.dir, "config.toml"), []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	log, err := os.Create(filepath.Join(r.dir, "log"))
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	cmd := n.Host.Command(tb.Context(), "containerd", "-c", filepath.Join(r.dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	})
	until(tb, "containerd is there", func() error {
		c, err := net.Dial("unix", r.socket())
		if err == nil {
			c.Close()
		}
		return err
	})
	return r
}

func (r *runtime) socket() string { return filepath.Join(r.dir, "sock") }

// ctr runs containerd's command.
func (r *runtime) ctr(tb testing.TB, args ...string) (string, error) {
	tb.Helper()
	out, err := r.node.Host.Command(tb.Context(), "ctr", append([]string{"--address", r.socket()}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ctr %s on %s: %w: %s", strings.Join(args, " "), r.node.Name, err, out)
	}
	return string(out), err
}

// pull pulls an image as users do, by the name that it has in the registry.
func (r *runtime) pull(tb testing.TB, image string, more ...string) error {
	tb.Helper()
	args := append([]string{"images", "pull", "--snapshotter", "native", "--hosts-dir", filepath.Join(r.dir, "certs")}, more...)
	_, err := r.ctr(tb, append(args, r.registry+"/"+image)...)
	return err
}

// forget has containerd have nothing any more.
func (r *runtime) forget(tb testing.TB, image string) {
	tb.Helper()
	if _, err := r.ctr(tb, "images", "rm", "--sync", r.registry+"/"+image); err != nil {
		tb.Fatal(err)
	}
	if out, err := r.ctr(tb, "content", "ls", "-q"); err != nil || strings.TrimSpace(out) != "" {
		tb.Fatalf("containerd still has %s, %v", out, err)
	}
}

// has checks that containerd has some blobs.
func (r *runtime) has(tb testing.TB, blobs []ocispec.Descriptor) {
	tb.Helper()
	for _, d := range blobs {
		out, err := r.node.Host.Command(tb.Context(), "ctr", "--address", r.socket(), "content", "get", string(d.Digest)).Output()
		if err != nil || digest.FromBytes(out) != d.Digest {
			tb.Errorf("%s on %s: other bytes, %v", d.Digest, r.node.Name, err)
		}
	}
}
