// Package doctor looks for what would stop a node from working on this machine. It
// changes nothing, and asks no node: what one says of itself is for its caller to read.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
)

// Finding is one thing that the doctor looked at.
type Finding struct {
	What string `json:"what"`
	Mark Mark   `json:"mark"`
	Text string `json:"text"`
}

// Mark is how a finding is meant.
type Mark string

// The marks.

const (
	Good Mark = "ok"
	Note Mark = "--" // no harm, but no part of it either
	Bad  Mark = "BAD"
)

// Of is a finding that is meant so.
func (m Mark) Of(what, text string) Finding { return Finding{what, m, text} }

// GoodIf is Good or Bad.
func GoodIf(ok bool) Mark {
	if ok {
		return Good
	}
	return Bad
}

func dataFinding(dir string) Finding {
	if !exists(dir) {
		return Finding{"data folder", Note, filepath.Clean(dir) + " is not there; a node makes it"}
	}
	f, err := os.CreateTemp(dir, "doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return Finding{"data folder", Bad, err.Error()}
	}
	return Finding{"data folder", Good, filepath.Clean(dir)}
}

const (
	// clockSkewMax is how far this clock may be from the store's, as for certificates.
	clockSkewMax = 5 * time.Minute
	// diskMin is what a data folder's disk has to have left for a node to work.
	diskMin = 512 << 20
)

// Settings are those that a node would start with here.
type Settings struct {
	Data               string
	Quota              int64
	Origin             string // "" for none
	API, FarmBind, NBD string // addresses, "" for none
	Listen, FarmJoin   []string
	// Open opens an origin with the credentials of this user.
	Open func(ctx context.Context, url string) (bucket.Bucket, error)
	// Timeout bounds each thing that is asked.
	Timeout time.Duration
}

// Examine looks at this machine, with the status of its node, or why there is none.
func (c Settings) Examine(ctx context.Context, s api.Status, away error) []Finding {
	c.Origin = cmp.Or(c.Origin, s.Origin.URL)
	out := []Finding{dataFinding(c.Data), diskFinding(c.Data, c.Quota, s.Cache.Used), toolsFinding(), c.portsFinding(ctx, s, away), clockFinding(ctx, c.Data, c.Origin)}
	if away != nil { // a node says more, and may have other credentials than this shell
		out = append(out, c.storeFindings(ctx)...)
	}
	return append(out, c.farmFinding(s, away)...)
}

func diskFinding(dir string, quota, used int64) Finding {
	for !exists(dir) && filepath.Dir(dir) != dir { // a node makes it
		dir = filepath.Dir(dir)
	}
	left, _, err := cache.DiskFree(dir)
	free := int64(min(left, math.MaxInt64))
	switch {
	case err != nil:
		return Finding{"disk", Bad, fmt.Sprintf("%s: %v", dir, err)}
	case free < diskMin:
		return Finding{"disk", Bad, fmt.Sprintf("%s free at %s: volumes and imports need room; make some", units.Bytes(free), dir)}
	case used+free < quota && quota != cache.QuotaDefault: // what nobody asked for adapts
		return Finding{"disk", Bad, fmt.Sprintf("--quota %s is more than the cache could ever have: %s free at %s; lower it", units.Bytes(quota), units.Bytes(free), dir)}
	}
	return Finding{"disk", Good, fmt.Sprintf("%s free at %s", units.Bytes(free), dir)}
}

// toolsFinding looks for the programs that imports start, each with its Debian package.
func toolsFinding() Finding {
	var missing []string
	for _, t := range [][3]string{
		{"qemu-nbd", "qemu-utils", "images that are not raw"},
		{"mke2fs", "e2fsprogs", "file systems from directories and tar files"},
	} {
		_, err := exec.LookPath(t[0])
		if _, sbin := exec.LookPath(filepath.Join("/usr/sbin", t[0])); err != nil && sbin != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian: %s) for %s", t[0], t[1], t[2]))
		}
	}
	if len(missing) > 0 {
		return Finding{"tools", Note, "imports lack " + strings.Join(missing, ", ")}
	}
	return Finding{"tools", Good, "imports have what they need"}
}

func (c Settings) portsFinding(ctx context.Context, s api.Status, away error) Finding {
	look, listen := CouldListen, c.Listen
	if away == nil {
		look, listen = c.answers, s.Self.Addrs
	}
	var wrong, fine []string
	doors := [][3]string{{"--api", "tcp", c.API}, {"--farm-bind", "tcp", c.FarmBind}, {"--farm-bind", "udp", c.FarmBind}, {"--nbd", "tcp", c.NBD}}
	for _, text := range listen {
		m, err := multiaddr.NewMultiaddr(text)
		var network, address string
		if err == nil {
			network, address, err = manet.DialArgs(m) // whatever is spoken there
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("--listen %s: %v", text, err))
		}
		doors = append(doors, [3]string{"--listen", network, address})
	}
	for _, d := range doors {
		if d[2] == "" {
			continue
		}
		if err := look(ctx, d[1], d[2]); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s %s: %v", d[0], d[2], err))
		} else {
			fine = append(fine, d[2])
		}
	}
	if len(wrong) > 0 {
		return Finding{"ports", Bad, strings.Join(wrong, "; ")}
	}
	return Finding{"ports", Good, strings.Join(fine, ", ")}
}

// CouldListen reports why nobody could listen at an address.
func CouldListen(ctx context.Context, network, address string) error {
	var config net.ListenConfig
	var closer io.Closer
	var err error
	if strings.HasPrefix(network, "udp") {
		closer, err = config.ListenPacket(ctx, network, address)
	} else {
		closer, err = config.Listen(ctx, network, address)
	}
	if err != nil {
		return err
	}
	return closer.Close()
}

// answers reports why nobody could connect to an address; of UDP it can't tell.
func (c Settings) answers(ctx context.Context, network, address string) error {
	if strings.HasPrefix(network, "udp") {
		return nil
	}
	dialer := net.Dialer{Timeout: c.Timeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// clockFinding compares this clock with the store's, and with what it said before.
func clockFinding(ctx context.Context, dir, origin string) Finding {
	now := time.Now()
	if info, err := os.Stat(filepath.Join(dir, "membership")); err == nil && info.ModTime().After(now.Add(clockSkewMax)) {
		return Finding{"clock", Bad, fmt.Sprintf("it is %s here, before this node became a member on %s; set the clock", now.Format(time.DateTime), info.ModTime().Format(time.DateTime))}
	}
	endpoint := origin
	if l, err := s3.ParseURL(origin); err == nil {
		endpoint = l.Endpoint
	}
	if u, err := url.Parse(endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return Finding{"clock", Note, "no store of another host to compare it with; it is " + now.Format(time.DateTime)}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, endpoint, nil)
	if err != nil {
		return Finding{"clock", Bad, err.Error()}
	}
	var theirs time.Time
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		theirs, err = http.ParseTime(resp.Header.Get("Date"))
	}
	if err != nil {
		return Finding{"clock", Note, "the store does not say what time it is: " + err.Error()}
	}
	if off := time.Until(theirs).Round(time.Second); off.Abs() > clockSkewMax {
		return Finding{"clock", Bad, fmt.Sprintf("it is %s here and %s at the store, %s apart; set the clock", time.Now().UTC().Format(time.DateTime), theirs.UTC().Format(time.DateTime), off.Abs())}
	}
	return Finding{"clock", Good, "as the store's"}
}

// storeFindings asks the origin itself, with the credentials of this user.
func (c Settings) storeFindings(ctx context.Context) []Finding {
	if c.Origin == "" {
		return []Finding{{"store", Note, "no --origin is set, and no node says one"}}
	}
	b, err := c.Open(ctx, c.Origin)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		_, _, err = bucket.ReadAll(ctx, b, content.KeyMesh, 1<<20)
	}
	store := Finding{"store", Good, "holds a mesh"}
	switch {
	case errors.Is(err, content.ErrForbidden):
		return []Finding{{"credentials", Bad, err.Error()}}
	case errors.Is(err, content.ErrNotFound):
		store.Text = "answers, and holds no mesh yet"
	case err != nil:
		return []Finding{{"store", Bad, err.Error()}}
	}
	return []Finding{{"credentials", Good, "the store takes them"}, store}
}

// farmFinding is of what is set; a node that answers says more itself.
func (c Settings) farmFinding(s api.Status, away error) []Finding {
	switch {
	case away != nil:
		return []Finding{{"farm", Note, "is not known without a node"}}
	case len(c.FarmJoin) > 0 && len(s.Farm) == 0:
		return []Finding{{"farm", Bad, "no neighbour of --farm-join " + strings.Join(c.FarmJoin, ",") + " is met: look at their --farm-bind, and at what filters UDP and TCP between"}}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
