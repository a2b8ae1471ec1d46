package main

import (
	"context"
	"fmt"
	"io"

	"github.com/grangemesh/grange/node/api"
)

type cacheCmd struct {
	Show  cacheShowCmd  `cmd:"" help:"Say how full the cache is."`
	Evict cacheEvictCmd `cmd:"" help:"Make room: remove the least useful chunks that are not pinned."`
}

type cacheShowCmd struct {
	JSON bool `name:"json" help:"Print the API's document."`
}

func (c *cacheShowCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return list(ctx, app, std, query{"/api/cache", c.JSON}, func(w io.Writer, k api.Cache) {
		fmt.Fprintf(w, "chunks\t%d\nused\t%s of %s\nfull\t%v\n", k.Chunks, humanBytes(k.Used), humanBytes(k.Quota), k.Full)
	})
}

type cacheEvictCmd struct {
	Size size `arg:"" help:"How much to remove."`
}

func (c *cacheEvictCmd) Run(ctx context.Context, app *cli, std stdio) error {
	var e api.Evicted
	if err := app.ask(ctx, "POST", "/api/cache/evict", api.EvictRequest{Bytes: int64(c.Size)}, &e); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.out, "removed %s; %d chunks are left, in %s\n", humanBytes(e.Freed), e.Cache.Chunks, humanBytes(e.Cache.Used))
	return err
}
