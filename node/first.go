package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/swarm"
)

// look says what the data folder is, before anything is done to it.
func (n *Node) look(context.Context) (err error) {
	var member membership.State
	member, n.identity, err = membership.Look(n.cfg.Dir)
	switch {
	case errors.Is(err, content.ErrNotFound):
		n.fresh, n.identity = true, trust.NewPrivateKey() // for as long as it tries
		return nil
	case err != nil:
		return err
	}
	n.awaited = index.Expected(n.volumesDir())
	return n.fits(n.cfg.Dir, member.Chain.Identity().Role)
}

// fits fails unless what is of that role is run as it: a seed run as a node would send
// without its owner's limits, and a node run as a seed leave its volumes to nobody.
func (n *Node) fits(what string, role trust.Role) error {
	if servicesOf(role) == servicesOf(n.cfg.Role) {
		return nil
	}
	return fmt.Errorf("%s: %w: it is for the role %q, and this is run as a %s; `grange seed` and `grange node` want a folder, and a token, each of its own", what, content.ErrInvalid, role, n.cfg.Role)
}

// lockTimeout is how long a start waits for the end of a node before it that was
// killed: its files close after it is gone to those who watch it.
const lockTimeout = 3 * time.Second

// openDir takes the data folder for this process alone, and clears its working files.
func (n *Node) openDir(ctx context.Context) error {
	if err := durable.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	lock, err := durable.LockWithin(ctx, filepath.Join(n.cfg.Dir, "lock"), lockTimeout)
	if errors.Is(err, content.ErrConflict) {
		return fmt.Errorf("data folder %s: another grange has it open: %w", n.cfg.Dir, err)
	}
	if err != nil {
		return fmt.Errorf("data folder %s: %w; run the node as the user whose folder it is", n.cfg.Dir, err)
	}
	n.unlock = lock.Close
	n.undo = append(n.undo, n.unlock)
	temp := filepath.Join(n.cfg.Dir, images.TempDir)
	if files, _ := os.ReadDir(temp); n.fresh && len(files) > 0 { // as a --data of /, or of a home
		return fmt.Errorf("data folder %s: %w: it is no node's yet, and its folder %s, which a node clears, holds files of others; give an empty --data", n.cfg.Dir, content.ErrConflict, images.TempDir)
	}
	if err := os.RemoveAll(temp); err != nil { // what killed imports and exports have left
		return fmt.Errorf("data folder: %w", err)
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

// tryFirst looks at all that a first start was told before a mesh is founded, an origin
// remembered or a token spent.
func (n *Node) tryFirst(ctx context.Context) error {
	if !n.fresh {
		return nil
	}
	if _, err := n.name(); err != nil {
		return err
	}
	if err := content.CheckFarm(n.cfg.Farm); n.cfg.Farm != "" && err != nil {
		return fmt.Errorf("--farm: %w", err)
	}
	if n.cfg.Role == trust.RoleSeed && n.cfg.Join == "" {
		return fmt.Errorf("--join: %w: a seed founds no mesh; give it a token of one, made by `grange token create --role seed`", content.ErrInvalid)
	}
	var token trust.Token
	var err error
	if n.cfg.Join != "" {
		if token, err = trust.ParseToken(n.cfg.Join, n.cfg.Now()); err != nil {
			return fmt.Errorf("--join: %w", err)
		}
		if err := n.fits("--join", token.Role); err != nil {
			return err
		}
	}
	if err := n.checkNetwork(true); err != nil || !servicesOf(n.cfg.Role).origin {
		return err
	}
	return n.tryOrigins(ctx, token)
}

// checkNetwork fails for addresses that can't be, and with bind for those that can't be
// taken now.
func (n *Node) checkNetwork(bind bool) error {
	if _, _, err := swarm.CheckAddrs(n.cfg.Listen, n.cfg.Announce); err != nil {
		return err
	}
	s, err := swarm.New(swarm.Config{Identity: n.identity, Listen: n.cfg.Listen, Announce: n.cfg.Announce, Bootstrap: n.cfg.Bootstrap, Log: n.cfg.Log})
	if err != nil {
		return err
	}
	if bind {
		err = s.Listen()
	}
	if err := errors.Join(err, s.Close(), n.checkFarm()); err != nil || !bind || n.cfg.FarmBind == "" {
		return err
	}
	l, err := net.Listen("tcp", n.cfg.FarmBind)
	if err == nil {
		var p net.PacketConn
		if p, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			err = p.Close()
		}
		err = errors.Join(err, l.Close())
	}
	if err != nil {
		return fmt.Errorf("--farm-bind %s: %w: %w; give a port that is free, at an address of this host", n.cfg.FarmBind, content.ErrUnavailable, err)
	}
	return nil
}

func (n *Node) checkFarm() error {
	for _, a := range append([]string{n.cfg.FarmBind}, n.cfg.FarmJoin...) {
		if _, _, err := net.SplitHostPort(a); a != "" && err != nil {
			return fmt.Errorf("farm address %q: %w: want HOST:PORT", a, content.ErrInvalid)
		}
	}
	if n.cfg.FarmBind == "" {
		return nil
	}
	_, err := farm.Place(n.cfg.FarmBind, n.cfg.FarmJoin)
	return err
}

// tryOrigins asks the origin that a new member will have. One that its operator names
// has to answer; of one that a token names it is enough that it is not another's. The
// zero token is for a mesh that is still to be founded.
func (n *Node) tryOrigins(ctx context.Context, token trust.Token) error {
	if len(n.cfg.Origins) == 0 && token.Origin != "" {
		err := n.askOrigin(ctx, token.Origin, func(ctx context.Context, b bucket.Bucket) error { return catalog.CheckMesh(ctx, b, token.Mesh) })
		if err != nil && !errors.Is(err, content.ErrUnavailable) && !errors.Is(err, content.ErrNotFound) {
			return fmt.Errorf("the mesh's origin, %s: %w", token.Origin, err)
		}
	}
	for i, url := range n.cfg.Origins {
		err := n.askOrigin(ctx, url, func(ctx context.Context, b bucket.Bucket) error {
			if i > 0 { // a mirror may come later
				return nil
			}
			err := catalog.CheckMesh(ctx, b, token.Mesh)
			switch {
			case errors.Is(err, content.ErrNotFound) && url == token.Origin:
				return nothingThere(url)
			case errors.Is(err, content.ErrNotFound):
				return bucket.Probe(ctx, b)
			case errors.Is(err, content.ErrConflict) && n.cfg.Join == "":
				return fmt.Errorf("%w: another mesh has it; to join that give --join a token, to found one an empty bucket or prefix", content.ErrConflict)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("--origin %s: %w", url, err)
		}
	}
	return nil
}

// askOrigin opens a bucket and asks it, for originTimeout at most.
func (n *Node) askOrigin(ctx context.Context, url string, ask func(context.Context, bucket.Bucket) error) error {
	ctx, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	begun := time.Now()
	b, _, err := n.cfg.OpenOrigin(ctx, url)
	if err == nil {
		err = ask(ctx, b)
	}
	return inTime(ctx, begun, err)
}

// Check says whether a node would start with that configuration, as far as that shows
// without a start: it opens nothing that a running node has open, and a member's folder
// stays as it is.
func Check(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	n := &Node{cfg: cfg}
	if err := n.look(ctx); err != nil || n.fresh {
		return errors.Join(err, n.tryFirst(ctx))
	}
	name, err := n.name()
	if err != nil {
		return err
	}
	state, _, err := n.entry(name).Enter(ctx)
	if err == nil {
		_, err = membership.Open(membership.Config{Dir: cfg.Dir, Identity: n.identity, Now: cfg.Now, Log: cfg.Log}, state)
	}
	if err == nil {
		err = n.checkNetwork(false)
	}
	if err != nil {
		return err
	}
	url := state.Origin
	if len(cfg.Origins) > 0 {
		url = cfg.Origins[0]
	}
	if url == "" || !servicesOf(cfg.Role).origin {
		return nil
	}
	err = n.askOrigin(ctx, url, func(ctx context.Context, b bucket.Bucket) error { return catalog.CheckMesh(ctx, b, state.Mesh) })
	if err != nil && !errors.Is(err, content.ErrUnavailable) && !(errors.Is(err, content.ErrNotFound) && !state.Seen) {
		return fmt.Errorf("the origin %s: %w", url, err)
	}
	return nil
}

// unlessAwaited drops the error of a part that volumes can be served without, if
// somebody waits for those of this node: of disks that nobody serves, their users hang.
func (n *Node) unlessAwaited(part string, err error) error {
	if err == nil || !n.awaited {
		return err
	}
	n.cfg.Log.Error("this node's volumes are served without "+part, "err", err)
	return nil
}
