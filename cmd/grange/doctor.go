package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
)

type doctorCmd struct{}

// finding is one thing that the doctor looked at.
type finding struct {
	What string `json:"what"`
	Mark mark   `json:"mark"`
	Text string `json:"text"`
}

// mark is how a finding is meant.
type mark string

const (
	good mark = "ok"
	note mark = "--" // no harm, but no part of it either
	bad  mark = "BAD"
)

func goodIf(ok bool) mark {
	if ok {
		return good
	}
	return bad
}

// Run looks at this machine, as a node would start here by environment and config file,
// and at the node if one answers; it fails when something stops a node from working.
func (c *doctorCmd) Run(ctx context.Context, app *cli, std stdio) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	_, s, err := app.status(ctx)
	var findings []finding
	if app.remote() == "" {
		findings = app.examine(ctx, s, err)
		if err != nil {
			findings = append(findings, disksFinding(disksOfMine()), finding{"node", note, "does not answer here: " + err.Error()})
		}
	}
	switch {
	case err == nil:
		findings = append(findings, app.examineNode(ctx, s)...)
	case app.remote() != "":
		findings = append(findings, finding{"node", bad, err.Error()})
	}
	if err := report(app, std, findings); err != nil {
		return err
	}
	wrong := 0
	for _, f := range findings {
		if f.Mark == bad {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings need a look", wrong, len(findings))
	}
	return nil
}

// doctorTimeout bounds all that the doctor asks together.
const doctorTimeout = time.Minute

// report prints findings: what is found may be long, so it is not cut.
func report(app *cli, std stdio, findings []finding) error {
	if app.JSON {
		return json.NewEncoder(std.out).Encode(findings)
	}
	for _, f := range findings {
		if _, err := fmt.Fprintln(std.out, terminal.Wrap(fmt.Sprintf("%-4s %-12s %s", f.Mark, f.What, f.Text), terminal.Width(std.out))); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) examineNode(ctx context.Context, s api.Status) []finding {
	return []finding{
		disksFinding(s.Disks),
		{"node", goodIf(s.Ready), cmp.Or(prefixed("runs, and waits for ", strings.Join(s.Waiting, ", ")), "runs, and is ready")},
		{"membership", goodIf(s.Self.Revoked.IsZero()), cmp.Or(revoked(s.Self), string(s.Self.Role))},
		{"origin", goodIf(originGood(s.Origin)), s.Origin.State + prefixed(": ", s.Origin.Detail)},
		{"cache", goodIf(!s.Cache.Full), fmt.Sprintf("%s of %s", units.Bytes(s.Cache.Used), units.Bytes(s.Cache.Quota)) + beyond(s.Cache)},
		{"farm", goodIf(s.Neighbourhood.State != node.FarmCutOff), neighbours(s)},
		volumesFinding(s),
	}
}

func volumesFinding(s api.Status) finding {
	if len(s.Failing) > 0 {
		return finding{"volumes", bad, fmt.Sprintf("%s can't be served, or can't be written to; `grange volume show NAME` says why", strings.Join(s.Failing, ", "))}
	}
	return finding{"volumes", good, fmt.Sprintf("%d here", s.Volumes)}
}

func beyond(c api.Cache) string {
	if c.Limit >= c.Quota {
		return ""
	}
	return fmt.Sprintf(", of which the disk has room for %s", units.Bytes(c.Limit))
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func dataFinding(dir string) finding {
	if !fileExists(dir) {
		return finding{"data folder", note, filepath.Clean(dir) + " is not there; a node makes it"}
	}
	f, err := os.CreateTemp(dir, "doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return finding{"data folder", bad, err.Error()}
	}
	return finding{"data folder", good, filepath.Clean(dir)}
}

// disksOfMine says how a node would serve volumes that runs as this process does.
func disksOfMine() api.Disks {
	if err := ublk.Probe(); err != nil {
		return api.Disks{Detail: err.Error()}
	}
	d := api.Disks{Served: true}
	if err := becomeFlusher(); err != nil {
		d.Detail = err.Error()
	}
	return d
}

func disksFinding(d api.Disks) finding {
	switch {
	case !d.Served:
		return finding{"ublk", note, "volumes are served over NBD: " + strings.TrimPrefix(d.Detail, "ublk: ")}
	case d.Detail != "":
		return finding{"ublk", note, "volumes are served as block devices; " + d.Detail}
	}
	return finding{"ublk", good, "volumes are served as block devices"}
}

const (
	// clockSkewMax is how far this clock may be from the store's, as for certificates.
	clockSkewMax = 5 * time.Minute
	// diskMin is what a data folder's disk has to have left for a node to work.
	diskMin = 512 << 20
)

// examine looks at this machine, with the status of its node, or why there is none.
func (c *cli) examine(ctx context.Context, s api.Status, away error) []finding {
	std := stdio{strings.NewReader(""), io.Discard, io.Discard}
	var would cli
	parser, err := newParser(&would, std)
	if err == nil {
		_, err = parser.Parse([]string{"node", "--data", c.Data, "--config", string(c.Config)})
	}
	if err != nil {
		return []finding{{"config", bad, err.Error()}}
	}
	settings := &would.Node
	out := []finding{dataFinding(c.Data), diskFinding(c.Data, int64(settings.Quota), s.Cache.Used), toolsFinding()}
	if _, err := settings.doors(c.Data); err != nil {
		out = append(out, finding{"nbd", bad, err.Error()})
	}
	out = append(out, portsFinding(ctx, settings, s, away))
	origin := s.Origin.URL
	if len(settings.Origin) > 0 {
		origin = settings.Origin[0]
	}
	out = append(out, clockFinding(ctx, c.Data, origin))
	if away != nil { // a node says more, and may have other credentials than this shell
		out = append(out, storeFindings(ctx, origin)...)
	}
	return append(out, farmFinding(settings, s, away)...)
}

func diskFinding(dir string, quota, used int64) finding {
	for !fileExists(dir) && filepath.Dir(dir) != dir { // a node makes it
		dir = filepath.Dir(dir)
	}
	left, _, err := cache.DiskFree(dir)
	free := int64(min(left, math.MaxInt64))
	switch {
	case err != nil:
		return finding{"disk", bad, fmt.Sprintf("%s: %v", dir, err)}
	case free < diskMin:
		return finding{"disk", bad, fmt.Sprintf("%s free at %s: volumes and imports need room; make some", units.Bytes(free), dir)}
	case used+free < quota && quota != cache.QuotaDefault: // what nobody asked for adapts
		return finding{"disk", bad, fmt.Sprintf("--quota %s is more than the cache could ever have: %s free at %s; lower it", units.Bytes(quota), units.Bytes(free), dir)}
	}
	return finding{"disk", good, fmt.Sprintf("%s free at %s", units.Bytes(free), dir)}
}

// toolsFinding looks for the programs that imports start, each with its Debian package.
func toolsFinding() finding {
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
		return finding{"tools", note, "imports lack " + strings.Join(missing, ", ")}
	}
	return finding{"tools", good, "imports have what they need"}
}

func portsFinding(ctx context.Context, c *nodeCmd, s api.Status, away error) finding {
	look, listen := couldListen, c.Listen
	if away == nil {
		look, listen = answers, s.Self.Addrs
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
		return finding{"ports", bad, strings.Join(wrong, "; ")}
	}
	return finding{"ports", good, strings.Join(fine, ", ")}
}

func couldListen(ctx context.Context, network, address string) error {
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
func answers(ctx context.Context, network, address string) error {
	if strings.HasPrefix(network, "udp") {
		return nil
	}
	dialer := net.Dialer{Timeout: statusTimeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// clockFinding compares this clock with the store's, and with what it said before.
func clockFinding(ctx context.Context, dir, origin string) finding {
	now := time.Now()
	if info, err := os.Stat(filepath.Join(dir, "membership")); err == nil && info.ModTime().After(now.Add(clockSkewMax)) {
		return finding{"clock", bad, fmt.Sprintf("it is %s here, before this node became a member on %s; set the clock", now.Format(time.DateTime), info.ModTime().Format(time.DateTime))}
	}
	endpoint := origin
	if l, err := s3.ParseURL(origin); err == nil {
		endpoint = l.Endpoint
	}
	if u, err := url.Parse(endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return finding{"clock", note, "no store of another host to compare it with; it is " + now.Format(time.DateTime)}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, endpoint, nil)
	if err != nil {
		return finding{"clock", bad, err.Error()}
	}
	var theirs time.Time
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		theirs, err = http.ParseTime(resp.Header.Get("Date"))
	}
	if err != nil {
		return finding{"clock", note, "the store does not say what time it is: " + err.Error()}
	}
	if off := time.Until(theirs).Round(time.Second); off.Abs() > clockSkewMax {
		return finding{"clock", bad, fmt.Sprintf("it is %s here and %s at the store, %s apart; set the clock", time.Now().UTC().Format(time.DateTime), theirs.UTC().Format(time.DateTime), off.Abs())}
	}
	return finding{"clock", good, "as the store's"}
}

// storeFindings asks the origin itself, with the credentials of this user.
func storeFindings(ctx context.Context, origin string) []finding {
	if origin == "" {
		return []finding{{"store", note, "no --origin is set, and no node says one"}}
	}
	b, err := originOpener{log: slog.New(slog.DiscardHandler)}.openURL(ctx, origin)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		_, _, err = bucket.ReadAll(ctx, b, content.KeyMesh, 1<<20)
	}
	store := finding{"store", good, "holds a mesh"}
	switch {
	case errors.Is(err, content.ErrForbidden):
		return []finding{{"credentials", bad, err.Error()}}
	case errors.Is(err, content.ErrNotFound):
		store.Text = "answers, and holds no mesh yet"
	case err != nil:
		return []finding{{"store", bad, err.Error()}}
	}
	return []finding{{"credentials", good, "the store takes them"}, store}
}

// farmFinding is of what is set; a node that answers says more itself.
func farmFinding(c *nodeCmd, s api.Status, away error) []finding {
	switch {
	case away != nil:
		return []finding{{"farm", note, "is not known without a node"}}
	case len(c.FarmJoin) > 0 && len(s.Farm) == 0:
		return []finding{{"farm", bad, "no neighbour of --farm-join " + strings.Join(c.FarmJoin, ",") + " is met: look at their --farm-bind, and at what filters UDP and TCP between"}}
	}
	return nil
}
