package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/volumes"
)

func viewVolume(v volumes.View) Volume {
	return Volume{
		Name: v.Name, Size: v.Size, From: v.From, Transport: v.Transport, Device: v.Device, Durability: v.Durability, ReadOnly: v.ReadOnly,
		Epoch: v.Epoch, State: string(v.State), Detail: v.Detail, Node: v.Node, Farm: v.Farm, Root: v.Root, DirtyBytes: v.DirtyBytes,
		Bytes: node.BytesOf(v.Bytes),
	}
}

func (s *Server) volumes(a huma.API) {
	vols := s.cfg.Node.Volumes
	route(a, http.MethodGet, "/api/volumes", "the volumes of this node", func(ctx context.Context, _ *struct{}) (*Answer[[]Volume], error) {
		out := []Volume{}
		for _, v := range vols.List() {
			out = append(out, viewVolume(v))
		}
		return ok(out), nil
	})
	route(a, http.MethodGet, "/api/volumes/{name}", "one volume", func(ctx context.Context, in *Named) (*Answer[Volume], error) {
		v, err := vols.Find(ctx, in.Name)
		return ok(viewVolume(v)), err
	})
	route(a, http.MethodPut, "/api/volumes/{name}", "create a volume, or attach it here", func(ctx context.Context, in *struct {
		Named
		Body VolumeSpec
	}) (*Answer[Volume], error) {
		v, created, err := vols.Put(ctx, in.Name, in.Body)
		if err != nil {
			return nil, err
		}
		if created {
			return &Answer[Volume]{http.StatusCreated, viewVolume(v)}, nil
		}
		return ok(viewVolume(v)), nil
	})
	route(a, http.MethodPost, "/api/volumes/{name}/detach", "stop serving a volume; its data stays on this node", func(ctx context.Context, in *struct {
		Named
		Forced
	}) (*Answer[Volume], error) {
		v, err := vols.Detach(ctx, in.Name, in.Force)
		return ok(viewVolume(v)), err
	})
	route(a, http.MethodDelete, "/api/volumes/{name}", "delete a volume; absent is success", func(ctx context.Context, in *struct {
		Named
		Forced
		Purge bool `query:"purge" doc:"its snapshots too, of which this version makes none"`
	}) (*struct{}, error) {
		return nil, vols.Remove(ctx, in.Name, in.Force)
	})
}
