package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
)

type whyCmd struct {
	Volume string `arg:"" help:"The volume."`
}

func (c *whyCmd) Run(ctx context.Context, app *cli, std stdio) error {
	return tell(ctx, app, std, request{method: "GET", path: volumePath(c.Volume) + "/why"}, func(w io.Writer, y api.Why) {
		if len(y.Reads) == 0 {
			fmt.Fprintln(w, "no read took longer than 10 ms in the last ten minutes")
		}
		for _, line := range y.Words {
			fmt.Fprintln(w, line)
		}
		for _, p := range y.PassedOver {
			fmt.Fprintf(w, "%s is passed over until %s%s\n", cmp.Or(p.Name, p.ID), moment(p.Until), prefixed(": ", p.Failure))
		}
		for _, r := range y.Reads {
			fmt.Fprintf(w, "\n%s of %s at %s took %s%s%s\n", units.Bytes(int64(r.Length)), "offset "+fmt.Sprint(r.Offset), moment(r.At), seconds(r.Took),
				cmp.Or(prefixed(", from ", r.Source), prefixed(", and failed: ", r.Error), " so far"), prefixed(", chunk ", r.Chunk))
			for _, s := range r.Steps {
				who := strings.TrimSpace(s.What + " " + cmp.Or(s.Name, s.Peer.String()))
				fmt.Fprintf(w, "  %+8.3f s\t%s\t%s\t%s\n", s.At.Sub(r.At).Seconds(), who, seconds(s.Took), cmp.Or(s.Outcome, map[bool]string{true: "brought it"}[s.Brought]))
			}
		}
	})
}

// seconds is a time that something took, "" for 0.
func seconds(s float64) string {
	if s == 0 {
		return ""
	}
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond / 10).String()
}
