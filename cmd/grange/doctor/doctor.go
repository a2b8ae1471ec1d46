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
)

// Finding is one thing that the doctor looked at.
type Finding struct {
	What string `json:"what"`
	Mark Mark   `json:"mark"`
	Text string `json:"text"`
	// Mend is what to run, or to set, about what is not Good.
	Mend string `json:"mend,omitempty"`
}

// Mark is how a finding is meant.
type Mark string

// The marks.

const (
	Good Mark = "ok"
	Note Mark = "--"   // no harm, but no part of it either
	Warn Mark = "warn" // works, until it is needed
	Bad  Mark = "BAD"
)

// Of is a finding that is meant so.
func (m Mark) Of(what, text string) Finding { return Finding{What: what, Mark: m, Text: text} }

// By says what mends it, where it is not Good.
func (f Finding) By(format string, args ...any) Finding {
	if f.Mark != Good {
		f.Mend = fmt.Sprintf(format, args...)
	}
	return f
}

// GoodIf is Good or Bad.
func GoodIf(ok bool) Mark {
	if ok {
		return Good
	}
	return Bad
}

func dataFinding(dir string) Finding {
	if !exists(dir) {
		return Note.Of("data folder", filepath.Clean(dir)+" is not there; a node makes it")
	}
	f, err := os.CreateTemp(dir, "doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return Bad.Of("data folder", err.Error()).By("install -d -m 0700 -o $(id -u) -g $(id -g) %s  # as root, or be the user that the node runs as", filepath.Clean(dir))
	}
	if path, owner, of := strange(dir); path != "" {
		return Bad.Of("data folder", fmt.Sprintf("%s belongs to user %d, and the folder to %d, as when a node was once started by another user: it can't be read or written then", path, owner, of)).By("chown -R %d %s  # with the node stopped", of, filepath.Clean(dir))
	}
	return Good.Of("data folder", filepath.Clean(dir))
}

const (
	// clockSkewMax is how far this clock may be from the store's, as for certificates.
	clockSkewMax = 5 * time.Minute
	// diskMin is what a data folder's disk has to have left for a node to work.
	diskMin = 512 << 20

	setClock = "timedatectl set-ntp true && timedatectl timesync-status"
	// LetPass is what lets members of a farm reach this host, at the ports that are usual.
	LetPass = "nft insert rule inet filter input meta l4proto '{ tcp, udp }' th dport '{ 4001, 7946 }' accept  # here and there, where nft list ruleset shows a filter"
)

// Settings are those that a node would start with here.
type Settings struct {
	Data               string
	Quota              int64
	Origin             string // "" for none
	API, FarmBind, NBD string // addresses, "" for none
	Listen, FarmJoin   []string
	// Bootstrap are multiaddrs of members, and Token is what a newcomer joins with; TokenErr is why
	// it can't be read.
	Bootstrap []string
	Token     string
	TokenErr  error
	// Open opens an origin with the credentials of this user.
	Open func(ctx context.Context, url string) (bucket.Bucket, error)
	// Timeout bounds each thing that is asked.
	Timeout time.Duration
}

// Examine looks at this machine, with the status of its node, or why there is none.
func (c Settings) Examine(ctx context.Context, s api.Status, away error) []Finding {
	c.Origin = cmp.Or(c.Origin, s.Origin.URL)
	out := []Finding{dataFinding(c.Data), diskFinding(c.Data, c.Quota, s.Cache.Used), toolsFinding(), c.portsFinding(ctx, s, away), clockFinding(ctx, c.Data, c.Origin)}
	out = append(out, c.storeFindings(ctx, away != nil)...)
	out = append(out, c.namesFinding(ctx)...)
	if away != nil { // who starts here next
		out = append(out, c.tokenFinding(ctx)...)
		out = append(out, filesFinding()...)
	}
	return append(append(out, hostFindings()...), c.farmFinding(s, away)...)
}

func diskFinding(dir string, quota, used int64) Finding {
	for !exists(dir) && filepath.Dir(dir) != dir { // a node makes it
		dir = filepath.Dir(dir)
	}
	left, _, err := cache.DiskFree(dir)
	free := int64(min(left, math.MaxInt64))
	switch {
	case err != nil:
		return Bad.Of("disk", fmt.Sprintf("%s: %v", dir, err)).By("df -h %s", dir)
	case free < diskMin:
		return Bad.Of("disk", fmt.Sprintf("%s free at %s: volumes and imports need room; make some", units.Bytes(free), dir)).By("grange cache evict 10G; du -xh --max-depth 2 %s | sort -h | tail", dir)
	case used+free < quota && quota != cache.QuotaDefault: // what nobody asked for adapts
		return Bad.Of("disk", fmt.Sprintf("--quota %s is more than the cache could ever have: %s free at %s; lower it", units.Bytes(quota), units.Bytes(free), dir)).By("set quota: %dGiB in the config file, then systemctl reload grange", (used+free)*8/10>>30)
	}
	return Good.Of("disk", fmt.Sprintf("%s free at %s", units.Bytes(free), dir))
}

// toolsFinding looks for the programs that imports start, each with its Debian package.
func toolsFinding() Finding {
	var missing, packages []string
	for _, t := range [][3]string{
		{"qemu-nbd", "qemu-utils", "images that are not raw"},
		{"mke2fs", "e2fsprogs", "file systems from directories and tar files"},
	} {
		_, err := exec.LookPath(t[0])
		if _, sbin := exec.LookPath(filepath.Join("/usr/sbin", t[0])); err != nil && sbin != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian: %s) for %s", t[0], t[1], t[2]))
			packages = append(packages, t[1])
		}
	}
	if len(missing) > 0 {
		return Note.Of("tools", "imports lack "+strings.Join(missing, ", ")).By("apt-get install %s", strings.Join(packages, " "))
	}
	return Good.Of("tools", "imports have what they need")
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
		mend := "ss -tulnp  # says who has them; stop that, or give another port"
		if away == nil {
			mend = "systemctl restart grange  # the node runs, and does not answer there; or let that pass: nft list ruleset"
		}
		return Bad.Of("ports", strings.Join(wrong, "; ")).By("%s", mend)
	}
	if len(fine) == 0 {
		return Note.Of("ports", "none is set, and no node says any")
	}
	return Good.Of("ports", strings.Join(fine, ", "))
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
		return Bad.Of("clock", fmt.Sprintf("it is %s here, before this node became a member on %s; set the clock", now.Format(time.DateTime), info.ModTime().Format(time.DateTime))).By(setClock)
	}
	endpoint := origin
	if l, err := s3.ParseURL(origin); err == nil {
		endpoint = l.Endpoint
	}
	if u, err := url.Parse(endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return Note.Of("clock", "no store of another host to compare it with; it is "+now.Format(time.DateTime))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, endpoint, nil)
	if err != nil {
		return Bad.Of("clock", err.Error()).By("correct the URL of --origin")
	}
	var theirs time.Time
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		theirs, err = http.ParseTime(resp.Header.Get("Date"))
	}
	if err != nil {
		return Note.Of("clock", "the store does not say what time it is: "+err.Error())
	}
	if off := time.Until(theirs).Round(time.Second); off.Abs() > clockSkewMax {
		return Bad.Of("clock", fmt.Sprintf("it is %s here and %s at the store, %s apart; set the clock", time.Now().UTC().Format(time.DateTime), theirs.UTC().Format(time.DateTime), off.Abs())).By(setClock)
	}
	return Good.Of("clock", "as the store's")
}

// farmFinding is of what is set; a node that answers says more itself.
func (c Settings) farmFinding(s api.Status, away error) []Finding {
	switch {
	case away != nil:
		return []Finding{Note.Of("farm", "is not known without a node")}
	case len(c.FarmJoin) > 0 && len(s.Farm) == 0:
		return []Finding{Bad.Of("farm", "no neighbour of --farm-join "+strings.Join(c.FarmJoin, ",")+" is met: look at their --farm-bind, and at what filters UDP and TCP between").By("%s", LetPass)}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
