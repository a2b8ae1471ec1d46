package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

const volumesPath = "/api/volumes"

func (s *Server) volumes(a huma.API) {
	vols := s.cfg.Node.Volumes
	if vols == nil {
		a = refusing(a, node.ErrNoVolumes)
	}
	route(a, "GET "+volumesPath, "the volumes of this node, or of the mesh", func(ctx context.Context, in *struct {
		Asked
		All bool `query:"all" doc:"those of the whole mesh, each with the node that has it"`
	}) (*Listed[Volume], error) {
		list, everywhere := func(context.Context) ([]Volume, error) { return vols.List(), nil }, ""
		if in.All {
			list, everywhere = vols.Everywhere, "true"
		}
		all, err := list(ctx)
		if err != nil {
			return nil, err
		}
		page, err := part(in.Page, s.risked(all...), func(v Volume) string { return v.Name }, cmp.Compare[string])
		page.link = also(page.link, "all", everywhere)
		return listed(in.IfNoneMatch, page, err)
	})
	named(a, "GET "+volumesPath+"/{name}", "one volume", func(ctx context.Context, name string) (Volume, error) {
		v, err := vols.Find(ctx, name)
		if err != nil {
			return v, err
		}
		return s.risked(v)[0], nil
	})
	named(a, "GET "+volumesPath+"/{name}/why", "the slowest reads of the last minutes, and what was tried for them", s.cfg.Node.Why)
	route(a, "PUT "+volumesPath+"/{name}", "create a volume, or attach it here", func(ctx context.Context, in *With[VolumeSpec]) (*Made[Volume], error) {
		v, created, err := vols.Put(ctx, in.Name, in.Body)
		if !created {
			return &Made[Volume]{http.StatusOK, "", v}, err
		}
		return made(http.StatusCreated, volumesPath+"/", v.Name, v), err
	}, http.StatusCreated, http.StatusOK)
	route(a, "POST "+volumesPath+"/{name}/detach", "stop serving a volume, so that any node may attach it", func(ctx context.Context, in *struct {
		Named
		Forced
	}) (*Answer[Volume], error) {
		return answer(vols.Detach(ctx, in.Name, in.Force))
	})
	route(a, "DELETE "+volumesPath+"/{name}", "delete a volume; absent is success", func(ctx context.Context, in *struct {
		Named
		Forced
		Purge bool `query:"purge" doc:"its snapshots too"`
	}) (*struct{}, error) {
		return nil, vols.Remove(ctx, in.Name, terms.RemoveSpec{Force: in.Force, Purge: in.Purge})
	})
	s.volumeChanges(a, vols)
	s.volumeWork(a, vols)
	s.snapshots(a, vols)
}

// volumeChanges registers what makes another thing of a volume at once.
func (s *Server) volumeChanges(a huma.API, vols *volumes.Volumes) {
	route(a, "POST "+volumesPath+"/{name}/rollback", "make a volume what it was at a snapshot of it", func(ctx context.Context, in *With[RollbackRequest]) (*Answer[Volume], error) {
		return answer(vols.Rollback(ctx, in.Name, in.Body.Snapshot))
	})
	route(a, "POST "+volumesPath+"/{name}/resize", "make a volume larger, while it is served", func(ctx context.Context, in *With[ResizeRequest]) (*Answer[Volume], error) {
		return answer(vols.Resize(ctx, in.Name, in.Body.Size))
	})
	route(a, "POST "+volumesPath+"/{name}/limits", "say how much clients may get of a volume, while it is served", func(ctx context.Context, in *With[Limits]) (*Answer[Volume], error) {
		return answer(vols.SetLimits(ctx, in.Name, in.Body))
	})
}

// Folded is the input of routes that may take a volume as the bucket has it.
type Folded struct {
	At string `query:"at" enum:"folded" doc:"folded: as the bucket has it, whoever holds it now"`
}

func (f Folded) ref(name string) string {
	if f.At != "" {
		name += "?at=" + f.At
	}
	return string(content.KindVolume) + ":" + name
}

// volumeWork registers what takes long.
func (s *Server) volumeWork(a huma.API, vols *volumes.Volumes) {
	route(a, "POST "+volumesPath+"/{name}/move", "let another node have a volume of this one", func(_ context.Context, in *With[MoveRequest]) (*Made[Operation], error) {
		if err := content.CheckName(in.Name); err != nil {
			return nil, err
		}
		return s.work("move", in.Name, func(ctx context.Context, _ terms.Progress) (string, error) {
			v, err := vols.Move(ctx, in.Name, in.Body.Node)
			return v.Device, err
		})
	}, http.StatusAccepted)
	route(a, "POST "+volumesPath+"/{name}/export", "write a volume to a file on the node's host", func(_ context.Context, in *struct {
		Named
		Folded
		Body ExportRequest
	}) (*Made[Operation], error) {
		return s.export(vols, in.ref(in.Name), in.Body)
	}, http.StatusAccepted)
	route(a, "POST "+volumesPath+"/{name}/promote", "publish a volume as an image", func(_ context.Context, in *struct {
		Named
		Folded
		Body PromoteSpec
	}) (*Made[Operation], error) {
		return s.promote(vols, in.ref(in.Name), in.Body)
	}, http.StatusAccepted)
}

// work starts long work on what a volume or snapshot is; do returns what came of it.
func (s *Server) work(kind, target string, do func(context.Context, terms.Progress) (note string, err error)) (*Made[Operation], error) {
	return accepted(s.cfg.Node.Operations.Start(kind, target, func(ctx context.Context, op *operations.Operation) error {
		note, err := do(ctx, func(done, total int64) {
			op.Update(func(v *Operation) { v.Done, v.Total = done, total })
		})
		op.Update(func(v *Operation) { v.Note = note })
		return err
	}))
}

func (s *Server) export(vols *volumes.Volumes, what string, to ExportRequest) (*Made[Operation], error) {
	ref, err := content.ParseRef(what)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Node.Images.MayWrite(to.File, to.Force); err != nil {
		return nil, fmt.Errorf("export %s to %q: %w", ref, to.File, err)
	}
	return s.work("export", ref.String(), func(ctx context.Context, progress terms.Progress) (string, error) {
		err := s.cfg.Node.Images.Beside(to.File, to.Force, func(f *os.File) error { return vols.Export(ctx, ref, f, progress) })
		if err != nil {
			err = fmt.Errorf("export %s to %s: %w", ref, to.File, err)
		}
		return "", err
	})
}

func (s *Server) promote(vols *volumes.Volumes, what string, to PromoteSpec) (*Made[Operation], error) {
	ref, err := content.ParseRef(what)
	if err != nil {
		return nil, err
	}
	if err := content.KindImage.CheckName(to.Image); err != nil {
		return nil, fmt.Errorf("promote %s: %w", ref, err)
	}
	return s.work("promote", ref.String(), func(ctx context.Context, progress terms.Progress) (string, error) {
		return "image:" + to.Image, vols.Promote(ctx, ref, to, progress)
	})
}

// changes registers the list of extents, a page of which is read off as it comes.
func (s *Server) changes(a huma.API, vols *volumes.Volumes) {
	route(a, "GET "+volumesPath+"/{name}/changes", "where two snapshots of a volume may differ, by offset", func(ctx context.Context, in *struct {
		Named
		IfNoneMatch
		From  uint64 `query:"from" required:"true" minimum:"1" doc:"number of the older snapshot"`
		To    uint64 `query:"to" doc:"number of the newer one; the volume as it is now when not given"`
		Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"10000" doc:"at most so many"`
		After int64  `query:"after" minimum:"0" doc:"end of the extent that they come behind"`
	}) (*Listed[Extent], error) {
		page, link := []Extent{}, "" // which nobody counts
		for x, err := range vols.Changes(ctx, in.Name, in.From, in.To) {
			if err != nil {
				return nil, err
			}
			if x.Offset < in.After {
				continue
			}
			if len(page) == in.Limit {
				last := page[len(page)-1]
				link = nextPage(in.Limit, strconv.FormatInt(last.Offset+last.Length, 10))
				link = also(also(link, "from", strconv.FormatUint(in.From, 10)), "to", strconv.FormatUint(in.To, 10))
				break
			}
			page = append(page, Extent(x))
		}
		return listed(in.IfNoneMatch, paged[Extent]{page, link, ""}, nil)
	})
}

// refusing has the routes that are registered with it answer why they do nothing here.
func refusing(a huma.API, why error) huma.API {
	g := huma.NewGroup(a)
	g.UseMiddleware(func(ctx huma.Context, _ func(huma.Context)) { huma.WriteErr(a, ctx, statusOf(why), content.Line(why)) })
	return g
}

const snapshotsPath = "/api/snapshots"

func (s *Server) snapshots(a huma.API, vols *volumes.Volumes) {
	s.take(a, vols)
	s.changes(a, vols)
	route(a, "GET "+snapshotsPath, "snapshots of the mesh's volumes", func(ctx context.Context, in *struct {
		Asked
		Volume string `query:"volume" maxLength:"270" doc:"of this volume alone"`
	}) (*Listed[Snapshot], error) {
		all, err := vols.Snapshots(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		page, err := part(in.Page, all, func(v Snapshot) string { return v.ID }, terms.CompareSnapshots)
		page.link = also(page.link, "volume", in.Volume)
		return listed(in.IfNoneMatch, page, err)
	})
	named(a, "GET "+snapshotsPath+"/{name}", "one snapshot", vols.FindSnapshot)
	route(a, "DELETE "+snapshotsPath+"/{name}", "delete a snapshot; absent is success", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, vols.RemoveSnapshot(ctx, in.Name)
	})
	route(a, "POST "+snapshotsPath+"/{name}/export", "write a snapshot to a file on the node's host", func(_ context.Context, in *With[ExportRequest]) (*Made[Operation], error) {
		return s.export(vols, snapshotRef(in.Name), in.Body)
	}, http.StatusAccepted)
	route(a, "POST "+snapshotsPath+"/{name}/promote", "publish a snapshot as an image", func(_ context.Context, in *With[PromoteSpec]) (*Made[Operation], error) {
		return s.promote(vols, snapshotRef(in.Name), in.Body)
	}, http.StatusAccepted)
}

func snapshotRef(id string) string { return string(content.KindSnapshot) + ":" + id }

// take registers the making of a snapshot, which is instant. That it is durable can be
// waited for as for other long work.
func (s *Server) take(a huma.API, vols *volumes.Volumes) {
	route(a, "POST "+volumesPath+"/{name}/snapshots", "name the state that a volume has now", func(ctx context.Context, in *struct {
		Named
		Wait string           `query:"wait" enum:"durable" doc:"durable: start an operation that ends when it is"`
		Body *SnapshotRequest `required:"false"`
	}) (*Made[Taken], error) {
		var spec terms.SnapshotSpec
		if in.Body != nil {
			spec.Label = in.Body.Label
		}
		if here, _ := vols.Get(in.Name); here.Device == "" { // the node that has it alone can make haste, and answers when it is durable
			spec.Wait = in.Wait
		}
		v, err := vols.Snapshot(ctx, in.Name, spec)
		if err != nil {
			return nil, err
		}
		taken := made(http.StatusCreated, snapshotsPath+"/", v.ID, Taken{Snapshot: v})
		if in.Wait == "" || v.Durable {
			return taken, nil
		}
		op, err := s.work("snapshot", v.ID, func(ctx context.Context, _ terms.Progress) (string, error) {
			return "", vols.Settle(ctx, v.ID)
		})
		if err != nil {
			return nil, err
		}
		taken.Status, taken.Location, taken.Body.Operation = op.Status, op.Location, op.Body.ID
		return taken, nil
	}, http.StatusCreated, http.StatusAccepted)
}
