package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// silentShown is how many of those that let nobody in an error names.
const silentShown = 3

// door is what a newcomer reaches members through.
type door struct {
	swarm    *swarm.Swarm
	exchange *exchange.Exchange
}

// redeemAt has an admin among the members at those addresses redeem an invite, and
// returns the address at which it was reached. All are tried side by side, however many
// are dead: a token's text bounds them. The invite is shown to admins of the mesh alone,
// to one after the other as they are reached.
func redeemAt(ctx context.Context, d door, q redeemRequest, addrs []string) (reply papers, at string, err error) {
	codec := content.NewCodec()
	body, err := codec.Marshal(q)
	if err != nil {
		return reply, "", err
	}
	var peers []peer.AddrInfo
	var errs []error
	for _, a := range addrs {
		info, err := swarm.ParseAddr(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		peers = swarm.AddPeer(peers, info)
	}
	ctx, cancel := context.WithCancel(ctx)
	var dialling sync.WaitGroup
	defer dialling.Wait()
	defer cancel()
	type attempt struct {
		id  peer.ID
		err error
	}
	met := make(chan attempt, len(peers))
	for _, p := range peers {
		dialling.Go(func() { met <- attempt{p.ID, d.admin(ctx, p)} })
	}
	for range peers {
		a := <-met
		if a.err != nil {
			errs = append(errs, a.err)
			continue
		}
		b, err := d.exchange.Call(ctx, a.id, redeemMethod, body)
		if errors.Is(err, content.ErrForbidden) { // it was refused, and asking elsewhere would not help
			return reply, "", err
		}
		if err == nil {
			err = codec.Unmarshal(b, &reply)
		}
		if err == nil {
			return reply, d.reachedAt(a.id, addrs), nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", a.id, err))
	}
	more := ""
	if len(errs) > silentShown {
		more = fmt.Sprintf(" (and %d more)", len(errs)-silentShown)
	}
	return papers{}, "", fmt.Errorf("%w: no admin answers at the %d addresses of the token and of --bootstrap: %w%s", content.ErrUnavailable, len(addrs), errors.Join(errs[:min(len(errs), silentShown)]...), more)
}

// admin connects with a member, which has to prove that it is an admin.
func (d door) admin(ctx context.Context, p peer.AddrInfo) error {
	if err := d.swarm.Connect(ctx, p); err != nil {
		return err
	}
	who, err := d.exchange.Meet(ctx, p.ID)
	if err == nil && who.Role != trust.RoleAdmin {
		err = fmt.Errorf("%w: it is a %s of the mesh, no admin", content.ErrUnavailable, who.Role)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.ID, err)
	}
	return nil
}

// reachedAt is the address at which a member was reached.
func (d door) reachedAt(id peer.ID, addrs []string) string {
	if at := d.swarm.Reached(id); at != nil {
		return at.String() + "/p2p/" + id.String()
	}
	return addrs[slices.IndexFunc(addrs, func(a string) bool { p, err := swarm.ParseAddr(a); return err == nil && p.ID == id })]
}
