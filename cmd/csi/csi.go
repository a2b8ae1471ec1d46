//go:build linux

// Package csi lets Kubernetes, and whoever else speaks the Container Storage Interface, have volumes: the services of
// identity, controller and node over the API of one node. A volume is attached where it is staged and released where it is
// unstaged, so that what the mesh says of its holder is all the state there is; the driver has none of its own to lose.
//
// That a volume has one writer is the mesh's fence to hold. The driver asks for a takeover only where the class of the volume
// says so, what was flushed would be lost with no node, and the node that has it is gone for the mesh and for Kubernetes.
package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// Name is what the driver is called in classes of storage.
	Name = "csi.grangemesh.github.io"
	// FarmKey is the topology that volumes and nodes have: a volume lives in its farm.
	FarmKey = Name + "/farm"

	// workMax is how long the driver goes on with what was asked for, also when nobody waits for the answer any more: the
	// repetition that Kubernetes sends soon finds it done. Within it a detach brings what was written to the bucket.
	workMax = 10 * time.Minute
	// stopGrace is what calls that are under way have at a stop.
	stopGrace = 10 * time.Second
)

// Config is a driver.
type Config struct {
	// Endpoint is unix:///PATH, where it is asked.
	Endpoint string
	Version  string
	Node     *client.Client
	Log      *slog.Logger
}

// Driver serves all three services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	cfg Config

	mu   sync.Mutex
	busy map[string]bool // what calls are at; guarded by mu
}

// New returns a driver that Run has serve.
func New(cfg Config) *Driver { return &Driver{cfg: cfg, busy: map[string]bool{}} }

// Run serves until ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	path, ok := strings.CutPrefix(d.cfg.Endpoint, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("--endpoint %q: want unix:///PATH", d.cfg.Endpoint)
	}
	// What a killed driver left is in the way.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--endpoint %s: %w", d.cfg.Endpoint, err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("--endpoint %s: %w", d.cfg.Endpoint, err)
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := grpc.NewServer(grpc.UnaryInterceptor(func(_ context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return d.answer(work, req, info, next)
	}))
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	unhook := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(stopGrace, cancel)
		defer late.Stop()
		s.GracefulStop()
	})
	defer unhook()
	d.cfg.Log.Info("serving CSI", "endpoint", d.cfg.Endpoint, "version", d.cfg.Version)
	return s.Serve(l)
}

// answer does what was asked for, and says of an error what kind it is.
func (d *Driver) answer(work context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(work, workMax)
	defer cancel()
	begun := time.Now()
	out, err := d.alone(ctx, req, next)
	if err == nil {
		d.cfg.Log.Debug("CSI call", "method", info.FullMethod, "took", time.Since(begun))
		return out, nil
	}
	err = kind(err)
	d.cfg.Log.Warn("CSI call failed", "method", info.FullMethod, "code", status.Code(err), "err", err)
	return nil, err
}

// kind gives an error its code in gRPC.
func kind(err error) error {
	if _, said := status.FromError(err); said {
		return err
	}
	code := codes.Internal
	problem, ok := errors.AsType[*client.Problem](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case ok:
		code = codeOf(problem.Problem)
	case errors.Is(err, errNode):
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

func codeOf(p api.Problem) codes.Code {
	switch p.Code {
	case "exists", "differs", "other_kind":
		return codes.AlreadyExists
	case "running":
		return codes.Aborted
	}
	switch p.Status {
	case 400:
		return codes.InvalidArgument
	case 401, 403:
		return codes.PermissionDenied
	case 404:
		return codes.NotFound
	case 409, 422:
		return codes.FailedPrecondition
	case 503:
		return codes.Unavailable
	case 507:
		return codes.ResourceExhausted
	}
	return codes.Internal
}

// invalid is an error in what was asked for.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// required returns the fields that a request of a kind has to have.
func required(request protoreflect.Name) []string {
	return strings.Fields(map[protoreflect.Name]string{
		"CreateVolumeRequest":               "name volume_capabilities",
		"DeleteVolumeRequest":               "volume_id",
		"ControllerPublishVolumeRequest":    "volume_id node_id volume_capability",
		"ControllerUnpublishVolumeRequest":  "volume_id",
		"ControllerExpandVolumeRequest":     "volume_id capacity_range",
		"ValidateVolumeCapabilitiesRequest": "volume_id volume_capabilities",
		"CreateSnapshotRequest":             "name source_volume_id",
		"DeleteSnapshotRequest":             "snapshot_id",
		"NodeStageVolumeRequest":            "volume_id staging_target_path volume_capability",
		"NodeUnstageVolumeRequest":          "volume_id staging_target_path",
		"NodePublishVolumeRequest":          "volume_id target_path volume_capability",
		"NodeUnpublishVolumeRequest":        "volume_id target_path",
		"NodeGetVolumeStatsRequest":         "volume_id volume_path",
		"NodeExpandVolumeRequest":           "volume_id volume_path",
	}[request])
}

// subjects are what a call changes: volumes, and the snapshot that it makes, which has a name that no volume has.
func subjects(req any) []string {
	switch r := req.(type) {
	case *csi.NodeGetVolumeStatsRequest, *csi.ValidateVolumeCapabilitiesRequest:
		return nil
	case *csi.CreateVolumeRequest:
		return []string{nameOf(r.Name, content.NameMax)}
	case *csi.CreateSnapshotRequest:
		return []string{r.SourceVolumeId, nameOf(r.Name, labelMax) + "@"}
	case interface{ GetVolumeId() string }:
		return []string{r.GetVolumeId()}
	}
	return nil
}

// alone does what is asked for, if it is asked for in full, while no other call changes the same. Who comes meanwhile is told
// to come again.
func (d *Driver) alone(ctx context.Context, req any, next grpc.UnaryHandler) (any, error) {
	if m, ok := req.(proto.Message); ok {
		m, kind := m.ProtoReflect(), m.ProtoReflect().Descriptor()
		for _, field := range required(kind.Name()) {
			if !m.Has(kind.Fields().ByName(protoreflect.Name(field))) {
				return nil, invalid("%s is missing", field)
			}
		}
	}
	names := subjects(req)
	d.mu.Lock()
	for _, name := range names {
		if d.busy[name] {
			d.mu.Unlock()
			return nil, status.Errorf(codes.Aborted, "%s: a call about it is under way; ask again later", name)
		}
	}
	for _, name := range names {
		d.busy[name] = true
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, name := range names {
			delete(d.busy, name)
		}
	}()
	return next(ctx, req)
}

// GetPluginInfo says who this is.
func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: d.cfg.Version}, nil
}

// GetPluginCapabilities says that volumes are of a farm, and grow while they are used.
func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := func(t csi.PluginCapability_Service_Type) *csi.PluginCapability {
		return &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}}
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		service(csi.PluginCapability_Service_CONTROLLER_SERVICE), service(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

// Probe says whether the node is ready. A node that does not answer is no fault of the driver's, which a new start would mend.
func (d *Driver) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	var s api.Status
	err := d.ask(ctx, "GET", "/api/status", nil, &s)
	if err != nil {
		d.cfg.Log.Warn("the node does not answer", "err", err)
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(err == nil && s.Ready)}, nil
}
