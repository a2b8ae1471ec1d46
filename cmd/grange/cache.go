package main

import (
	"context"
	"fmt"
	"io"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
)

type cacheCmd struct {
	Show  cacheShowCmd  `cmd:"" help:"Say how full the cache is."`
	Evict cacheEvictCmd `cmd:"" help:"Make room: remove the least useful chunks that are not pinned."`
}

type cacheShowCmd struct{}

func (c *cacheShowCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: "/api/cache"}, func(w io.Writer, k api.Cache) {
		fmt.Fprintf(w, "chunks\t%d\nused\t%s of %s\nfull\t%v\n", k.Chunks, units.Bytes(k.Used), units.Bytes(k.Quota), k.Full)
	})
}

type cacheEvictCmd struct {
	Size units.Size `arg:"" help:"How much to remove."`
}

func (c *cacheEvictCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{"POST", "/api/cache/evict", api.EvictRequest{Bytes: int64(c.Size)}}, func(w io.Writer, e api.Evicted) {
		fmt.Fprintf(w, "removed %s; %d chunks are left, in %s\n", units.Bytes(e.Freed), e.Cache.Chunks, units.Bytes(e.Cache.Used))
	})
}
