package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// pause is between looks at what is waited for.
const pause = 50 * time.Millisecond

// process is a program that runs beside the test.
type process struct {
	cmd   *exec.Cmd
	log   *log
	ended chan struct{}
}

// log keeps what a process says.
type log struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func run(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("./grange", args...), log: new(log), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // who ends it knows what to expect
		close(p.ended)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			text := p.log.String()
			t.Logf("grange %s says:\n%s", args[0], text[max(0, len(text)-3000):])
		}
		p.kill(t)
	})
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	<-p.ended
}

// until asks again and again until something is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	const most = 90 * time.Second
	late := time.After(most)
	for !so() {
		select {
		case <-late:
			t.Fatalf("%s: not within %v", what, most)
		case <-time.After(pause):
		}
	}
}

// host is a node with its driver.
type host struct {
	whole        *testing.T // that its processes live as long as
	t            *testing.T // that goes on now
	name, data   string
	args         []string // of the node
	node, driver *process
	conn         *grpc.ClientConn
	csi.ControllerClient
	csi.NodeClient
	csi.IdentityClient
	id string
}

// farm starts hosts of one farm.
func farm(t *testing.T, names ...string) (hosts []*host) {
	t.Helper()
	dir := t.TempDir()
	for i, name := range names {
		h := &host{whole: t, t: t, name: name, data: filepath.Join(dir, name)}
		h.args = []string{
			"node", "--data", h.data, "--name", name, "--origin", "file://" + dir + "/origin", "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 4001+i),
			"--farm-bind", fmt.Sprintf("127.0.0.1:%d", 7946+i), "--farm-join", "127.0.0.1:7946",
		}
		if i == 0 {
			h.args = append(h.args, "--farm", "lyon")
			must(t, "mkdir -p "+dir+"/origin")
		} else {
			token := filepath.Join(dir, "token-"+name)
			must(t, "(umask 077; ./grange token create --role admin --data "+hosts[0].data+" >"+token+")")
			h.args = append(h.args, "--join", "@"+token)
		}
		h.start()
		h.drive()
		hosts = append(hosts, h)
	}
	until(t, "the farm is whole", func() bool {
		out := must(t, "./grange mesh peers --json --data "+hosts[0].data)
		return strings.Count(out, `"alive"`) == len(hosts)-1
	})
	return hosts
}

// start starts the node.
func (h *host) start() {
	h.t.Helper()
	h.node = run(h.whole, h.args...)
	h.ready()
}

func (h *host) ready() {
	h.t.Helper()
	must(h.t, "./grange status --wait 60s --data "+h.data)
}

// drive starts the driver, and connects to it.
func (h *host) drive() {
	h.t.Helper()
	socket := h.data + ".csi.sock"
	h.driver = run(h.whole, "csi", "--endpoint", "unix://"+socket, "--data", h.data)
	if h.conn == nil {
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			h.t.Fatal(err)
		}
		h.whole.Cleanup(func() { conn.Close() })
		h.conn, h.ControllerClient, h.NodeClient, h.IdentityClient = conn, csi.NewControllerClient(conn), csi.NewNodeClient(conn), csi.NewIdentityClient(conn)
	}
	until(h.t, "the driver is ready", func() bool {
		out, err := h.Probe(h.t.Context(), &csi.ProbeRequest{})
		return err == nil && out.Ready.GetValue()
	})
	info, err := h.NodeGetInfo(h.t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || info.AccessibleTopology.Segments["csi.grangemesh.github.io/farm"] != "lyon" || info.MaxVolumesPerNode == 0 {
		h.t.Fatalf("%v, %v", info, err)
	}
	h.id = info.NodeId
}

// handOver has the node become its program anew.
func (h *host) handOver() {
	h.t.Helper()
	serving := func() int { return strings.Count(h.node.log.String(), "INF serving") }
	before := serving()
	if err := h.node.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		h.t.Fatal(err)
	}
	until(h.t, "the node has handed over", func() bool { return serving() > before })
	h.ready()
}

func must(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// claim is a volume as a pod uses it.
type claim struct {
	t              *testing.T
	id             string
	as             *csi.VolumeCapability
	context        map[string]string // of its class
	published      map[string]string // of its publication
	stage, target  string
	readonlyTarget bool
}

func mounted(kind string, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}, AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: kind}},
	}
}

func block() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: writer}, AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

const (
	writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	reader = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY

	mib = 1 << 20
)

// wish is a CreateVolume of 64 MiB, and more for xfs.
func wish(name string, as *csi.VolumeCapability) *csi.CreateVolumeRequest {
	size := int64(64 * mib)
	if as.GetMount().GetFsType() == "xfs" {
		size = 320 * mib // it makes none that is smaller than 300
	}
	return &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{as}, CapacityRange: &csi.CapacityRange{RequiredBytes: size}}
}

// create makes a volume, on that host.
func (h *host) create(r *csi.CreateVolumeRequest) *claim {
	h.t.Helper()
	out, err := h.CreateVolume(h.t.Context(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	base := filepath.Join(h.t.TempDir(), out.Volume.VolumeId)
	return &claim{t: h.t, id: out.Volume.VolumeId, as: r.VolumeCapabilities[0], context: out.Volume.VolumeContext, stage: base + "/stage", target: base + "/pod"}
}

// attach publishes to a host, by the controller on that.
func (c *claim) attach(h *host) error {
	out, err := h.ControllerPublishVolume(c.t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: c.id, NodeId: h.id, VolumeCapability: c.as, VolumeContext: c.context})
	c.published = out.GetPublishContext()
	return err
}

func (c *claim) mount(h *host) error {
	ctx, path := c.t.Context(), c.stage+h.name
	_, err := h.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: c.id, StagingTargetPath: path, VolumeCapability: c.as, PublishContext: c.published, VolumeContext: c.context})
	if err == nil {
		_, err = h.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: c.id, StagingTargetPath: path, TargetPath: c.target + h.name, VolumeCapability: c.as, PublishContext: c.published, Readonly: c.readonlyTarget})
	}
	return err
}

// begin has a pod on a host use it, and returns where it is there.
func (c *claim) begin(h *host) string {
	c.t.Helper()
	if err := errors.Join(c.attach(h), c.mount(h)); err != nil {
		c.t.Fatal(err)
	}
	return c.target + h.name
}

func (c *claim) unmount(ctx context.Context, h *host) error {
	_, err := h.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.id, TargetPath: c.target + h.name})
	if err == nil {
		_, err = h.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: c.id, StagingTargetPath: c.stage + h.name})
	}
	return err
}

// end has it end there.
func (c *claim) end(h *host) {
	c.t.Helper()
	err := c.unmount(c.t.Context(), h)
	if err == nil {
		_, err = h.ControllerUnpublishVolume(c.t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: c.id, NodeId: h.id})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// wants fails the test unless an error has a code, and says something.
func wants(t *testing.T, err error, code codes.Code, says string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("%v, want %s that says %q", err, code, says)
	}
}
