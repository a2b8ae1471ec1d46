package api

import (
	"cmp"
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/origin/content"
)

func (s *Server) images(a huma.API) {
	images := s.cfg.Node.Images
	s.shelf(a, "/api/images", content.RootDisk)
	route(a, "PUT /api/images/{name}", "import an image", func(ctx context.Context, in *With[ImportRequest]) (*Made[Operation], error) {
		return accepted(images.Import(ctx, in.Name, in.Body))
	}, http.StatusAccepted)
	route(a, "POST /api/images/{name}/export", "write an image to a file on the node's host", func(_ context.Context, in *With[ExportRequest]) (*Made[Operation], error) {
		return accepted(images.Export(in.Name, in.Body.File, in.Body.Force))
	}, http.StatusAccepted)
	s.profiles(a)
	s.shelf(a, "/api/trees", content.RootTree)
	route(a, "PUT /api/trees/{name}", "import a tree", func(ctx context.Context, in *With[ImportRequest]) (*Made[Operation], error) {
		return accepted(images.ImportTree(ctx, in.Name, in.Body))
	}, http.StatusAccepted)
	route(a, "POST /api/trees/{name}/export", "write a tree into a folder on the node's host", func(_ context.Context, in *With[ExportTreeRequest]) (*Made[Operation], error) {
		return accepted(images.ExportTree(in.Name, in.Body.Dir, in.Body.Force))
	}, http.StatusAccepted)
	s.mounts(a)
}

// profiles registers how it is found out what boots of an image read.
func (s *Server) profiles(a huma.API) {
	profiles := s.cfg.Node.Profiles
	if profiles == nil {
		a = refusing(a, node.ErrNoVolumes)
	}
	route(a, "POST /api/images/{name}/profile", "find out what boots of an image read, on this node and others, and lay it out by that", func(_ context.Context, in *struct {
		Named
		Body *ProfileSpec `required:"false"`
	}) (*Made[Operation], error) {
		if in.Body == nil {
			in.Body = &ProfileSpec{}
		}
		return accepted(profiles.Begin(in.Name, *in.Body))
	}, http.StatusAccepted)
}

// mounts registers how trees are shown as folders of the node's host.
func (s *Server) mounts(a huma.API) {
	mounts := s.cfg.Node.Mounts
	if mounts == nil {
		a = refusing(a, node.ErrNoVolumes)
	}
	lists(a, "/api/mounts", "trees that are mounted on the node's host, by folder", func(m Mount) string { return m.Dir }, func(context.Context) ([]Mount, error) { return mounts.List(), nil })
	route(a, "POST /api/trees/{name}/mounts", "show a tree as a folder of the node's host, read-only", func(ctx context.Context, in *With[MountRequest]) (*Answer[Mount], error) {
		return answer(mounts.Mount(ctx, in.Name, in.Body.Dir))
	})
	route(a, "DELETE /api/mounts", "end a mount; absent is success", func(ctx context.Context, in *struct {
		Dir string `query:"dir" required:"true" maxLength:"4096" doc:"the folder"`
	}) (*struct{}, error) {
		return nil, mounts.Unmount(ctx, in.Dir)
	})
}

// shelf registers what images and trees have in common: they, and their tags, share their names.
func (s *Server) shelf(a huma.API, at string, root content.RootKind) {
	images := s.cfg.Node.Images
	route(a, "GET "+at, "those that there are, and their tags, by name", func(ctx context.Context, in *struct {
		Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many"`
		After string `query:"after" maxLength:"1024" doc:"what comes behind this one, which need not be there any more; with sort what the Link to the next page says"`
		Choice
		IfNoneMatch
	}) (*Listed[Image], error) {
		page, err := s.shelved(ctx, root, Page{in.Limit, in.After, in.Choice})
		return listed(in.IfNoneMatch, page, err)
	})
	route(a, "GET "+at+"/{name}", "one, or a tag of one", func(ctx context.Context, in *struct {
		Named
		Holders bool `query:"holders" doc:"and who has some of it, which may take half a second to ask"`
		IfNoneMatch
	}) (*Tagged[Image], error) {
		find := images.Get
		if in.Holders {
			find = images.Holders
		}
		i, err := find(ctx, in.Name)
		return tagged(in.IfNoneMatch, i, err)
	})
	named(a, "DELETE "+at+"/{name}", "delete one, or a tag; absent is success", images.Remove)
	route(a, "PUT "+at+"/{name}/tags/{tag}", "let a tag stand for it", func(ctx context.Context, in *struct {
		Named
		Tag string `path:"tag" maxLength:"270"`
	}) (*Answer[Image], error) {
		return answer(images.Tag(ctx, in.Name, in.Tag))
	})
	s.shelfWork(a, at)
	route(a, "PUT "+at+"/{name}/pin", "keep its chunks in the cache", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, images.Pin(ctx, in.Name)
	})
	route(a, "DELETE "+at+"/{name}/pin", "let its chunks be evicted", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, images.Unpin(ctx, in.Name)
	})
}

// namesAtOnce is how many names are looked through at once for those that are asked for.
const namesAtOnce = 1000

// shelved is a page of the images, or trees. By name the origin lists no more than the page; in another order all of them are
// looked at, whose records are here as a rule.
func (s *Server) shelved(ctx context.Context, root content.RootKind, in Page) (paged[Image], error) {
	out, at, wanted := paged[Image]{page: []Image{}}, in.After, in.Limit
	if in.Match != "" {
		wanted = namesAtOnce
	}
	if in.Sort == "name" {
		in.Sort = ""
	} else if in.Sort != "" {
		at, wanted = "", namesAtOnce
	}
	for more := true; more; {
		var some []Image
		var err error
		if some, more, err = s.cfg.Node.Images.List(ctx, root, at, wanted); err != nil {
			return out, err
		}
		for _, i := range some {
			at = i.Name
			if !matches(in.Match, i) {
				continue
			}
			if in.Sort == "" && len(out.page) == in.Limit {
				out.link = in.kept(nextPage(in.Limit, out.page[in.Limit-1].Name))
				return out, nil
			}
			out.page = append(out.page, i)
		}
		if in.Sort == "" && len(out.page) == in.Limit && more {
			out.link = in.kept(nextPage(in.Limit, at))
			return out, nil
		}
		more = more && len(some) > 0
	}
	if in.Sort == "" {
		return out, nil
	}
	in.Match = "" // they do
	return part(in, out.page, func(i Image) string { return i.Name }, cmp.Compare[string])
}

// shelfWork registers what is done to an image or tree in the background.
func (s *Server) shelfWork(a huma.API, at string) {
	images := s.cfg.Node.Images
	route(a, "POST "+at+"/{name}/warm", "fetch all of it into the cache", func(_ context.Context, in *struct {
		Named
		All bool `query:"all" doc:"into those of all members of this farm"`
	}) (*Made[Operation], error) {
		if in.All {
			return accepted(images.WarmAll(in.Name))
		}
		return accepted(images.Warm(in.Name))
	}, http.StatusAccepted)
	route(a, "POST "+at+"/{name}/verify", "read all of it at the origin and check it", func(_ context.Context, in *Named) (*Made[Operation], error) {
		return accepted(images.Verify(in.Name))
	}, http.StatusAccepted)
}
