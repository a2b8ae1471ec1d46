//go:build linux

package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

const (
	volumesPath, snapshotsPath = "/api/volumes", "/api/snapshots"

	// hashed is what names begin with that stand for names which the mesh would not take.
	hashed = "csi."
	// labelMax is what a label of a snapshot may have.
	labelMax = 64
	// hashedMax is how much of a hash is in a name: 160 bits, which nobody finds another name for.
	hashedMax = 40
)

// errNode says that the node can't be asked.
var errNode = errors.New("the node")

// ask asks the node; what it refuses is a *client.Problem.
func (d *Driver) ask(ctx context.Context, method, path string, in, out any) error {
	err := d.cfg.Node.Ask(ctx, method, path, in, out)
	if _, refused := errors.AsType[*client.Problem](err); err == nil || refused {
		return err
	}
	return fmt.Errorf("%w: %w", errNode, err)
}

// is reports whether the node has refused something with a status, or with a code of its own.
func is(err error, status int, code string) bool {
	p, ok := errors.AsType[*client.Problem](err)
	return ok && (p.Status == status || code != "" && p.Code == code)
}

const missing = 404

func volumePath(name string) string { return volumesPath + "/" + content.Segment(name) }

// nameOf is the volume that a name of the orchestrator's stands for: itself where the mesh takes it, else one made of its
// hash, which no other name stands for.
func nameOf(name string, most int) string {
	if content.CheckName(name) == nil && len(name) <= most && !strings.HasPrefix(name, hashed) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hashed + hex.EncodeToString(sum[:])[:hashedMax]
}

// find returns a volume of the mesh, wherever it is, by its ID, which is its name. As this node's own it says how it is served.
func (d *Driver) find(ctx context.Context, id string) (v api.Volume, err error) {
	none := status.Errorf(codes.NotFound, "there is no volume %q", id)
	if content.CheckName(id) != nil {
		return v, none
	}
	if err = d.ask(ctx, "GET", volumePath(id), nil, &v); !is(err, missing, "") {
		return v, err
	}
	// What other nodes have is listed. The name before it: no volume's has a tilde.
	last := len(id) - 1
	var page []api.Volume
	query := url.Values{"all": {"true"}, "limit": {"1"}, "after": {id[:last] + string(id[last]-1) + "~"}}
	if err = d.ask(ctx, "GET", volumesPath+"?"+query.Encode(), nil, &page); err != nil {
		return v, err
	}
	if len(page) == 0 || page[0].Name != id {
		return v, none
	}
	return page[0], nil
}

// self is the node that is asked.
func (d *Driver) self(ctx context.Context) (api.Peers, error) {
	var p api.Peers
	return p, d.ask(ctx, "GET", "/api/peers", nil, &p)
}

// farmOf returns the farm of a member by its ID.
func (d *Driver) farmOf(ctx context.Context, id string) (string, error) {
	var all []api.Member
	if err := d.ask(ctx, "GET", "/api/members", nil, &all); err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(m api.Member) bool { return m.ID == id && m.State != "revoked" })
	if i < 0 {
		return "", status.Errorf(codes.NotFound, "the mesh has no node %q", id)
	}
	return all[i].Farm, nil
}

// held reports whether some node may write to a volume, by its record.
func held(v api.Volume) bool {
	return v.State != terms.StateReleased && v.State != terms.StateReading && v.Node != ""
}

// borrowed reports whether this node serves a volume for a deed of the controller's alone: that is done over NBD, and pods
// get disks. One that a driver left so when it was killed is given back by the next call about it.
func borrowed(v api.Volume) bool { return v.Transport == terms.NBD && v.Device != "" }

// serve attaches a volume for a deed of the controller's.
func (d *Driver) serve(ctx context.Context, name string) error {
	return d.ask(ctx, "PUT", volumePath(name), api.VolumeSpec{Transport: terms.NBD}, nil)
}

// giveBack releases a volume of this node; one whose record could not be written when that was tried before is attached for it, or
// turns out to be another's that has taken it over: then there is nothing to release.
func (d *Driver) giveBack(ctx context.Context, v api.Volume) (err error) {
	was := v.State
	if was == terms.StateDetached {
		if err = d.serve(ctx, v.Name); is(err, 0, string(content.Held)) {
			return nil
		}
	}
	if err == nil {
		err = d.ask(ctx, "POST", volumePath(v.Name)+"/detach", nil, &v)
	}
	if err == nil && v.State == terms.StateDetached && was != terms.StateReading { // of what was only read nothing is left here
		err = status.Errorf(codes.Unavailable, "volume %s is this node's still: what it has did not get into the bucket; it is tried again", v.Name)
	}
	return err
}

// borrow does something with a volume that nobody has, while it is attached here. It is not given back where another driver of this
// host has got it for a pod meanwhile.
func (d *Driver) borrow(ctx context.Context, name string, do func() error) error {
	if err := d.serve(ctx, name); err != nil {
		return err
	}
	done := do()
	v, err := d.find(ctx, name)
	if err == nil && borrowed(v) {
		err = d.giveBack(ctx, v)
	}
	return errors.Join(done, err)
}
