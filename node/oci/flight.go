package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// triesMax is how often a blob is tried to be brought in, from whichever source, without a byte more
	// of it; then who waits is told.
	triesMax = 5
	// retryAfter is between the first two tries, twice as long between the next.
	retryAfter = 300 * time.Millisecond
	// flightsMax bounds the blobs that come at once: each has a file, and buffers.
	flightsMax = 64
)

// bring returns a blob that is here, or comes. Its user closes it.
func (d *Door) bring(ctx context.Context, p registry.Place, it registry.Item, credential string) (*blob, error) {
	x, mine, err := d.blobs.begin(blobID{it.Digest, d.domain(ctx, p, it)}, it.Size)
	if err == nil && x.size != it.Size { // what others read to its end would never come
		x.close()
		return nil, fmt.Errorf("blob %s: %w: %s says that it has %d bytes, and who is asked for it besides %d", it.Digest, content.ErrCorrupt, p, it.Size, x.size)
	}
	if err != nil || !mine {
		return x, err
	}
	x.enter() // for the flight
	d.work.Add(1)
	go func() {
		defer d.work.Done()
		defer x.close()
		err := d.flights.Acquire(d.running, 1)
		if err == nil {
			f := flight{d, p, it, credential, x}
			err = f.run(d.running)
			d.flights.Release(1)
		}
		if err != nil {
			d.blobs.fail(x, err)
		}
	}()
	return x, nil
}

// domain is that of a blob of a repository.
func (d *Door) domain(ctx context.Context, p registry.Place, it registry.Item) string {
	if p.Registry == "" || d.openTo(ctx, p, it) != some {
		return ""
	}
	sum := sha256.Sum256([]byte(p.Prefix()))
	return hex.EncodeToString(sum[:domainSize])
}

// flight brings in one blob.
type flight struct {
	door       *Door
	place      registry.Place
	item       registry.Item
	credential string
	blob       *blob
}

// run goes on from source to source until all has come. What came is dropped once when it is not what it
// should be; then it comes from the registry alone.
func (f *flight) run(ctx context.Context) error {
	var failed error
	wait, doubted := retryAfter, false
	for try := 0; try < triesMax; try++ {
		before := f.blob.length()
		err := f.attempt(ctx, doubted)
		if err == nil {
			if err = f.blob.finish(); err == nil {
				f.door.tellDone(ctx, f.blob.id)
				return nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, content.ErrCorrupt):
			f.door.cfg.Log.Warn("what came of a blob is not it; it is fetched anew", "blob", f.item.Digest, "of", f.place, "err", err)
			f.blob.restart()
			if doubted { // the registry itself has sent that
				return err
			}
			doubted = true
		case f.blob.length() > before:
			try, wait = -1, retryAfter // it gets on
		case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrNoSpace):
			return err
		}
		if _, refused := errors.AsType[*registry.Refusal](err); refused {
			return err
		}
		failed = err
		away, ok := errors.AsType[*registry.AwayError](err)
		if ok && away.Mute && f.blob.length() == 0 && try > 0 { // so that a client goes on to somebody else soon
			return err
		}
		if ok && !away.Mute {
			wait = max(wait, min(away.After, registry.Patience))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait *= 2
	}
	return fmt.Errorf("blob %s of %s: %w: %w", f.item.Digest, f.place, content.ErrUnavailable, failed)
}

// attempt takes the nearest source: the mesh, a member of the farm, the registry.
func (f *flight) attempt(ctx context.Context, doubted bool) error {
	d := f.door
	if !doubted {
		err := d.fromTree(ctx, f.place, f.item, f.blob.from(d, "mesh"))
		if err == nil || errors.Is(err, content.ErrCorrupt) {
			return err
		}
		if !errors.Is(err, content.ErrNotFound) {
			d.cfg.Log.Warn("a blob does not come from the mesh", "blob", f.item.Digest, "of", f.place, "err", err)
		}
		from, err := d.who(ctx, f.blob.id, "")
		for range d.cfg.Live() {
			if err != nil || from == d.cfg.Self {
				break
			}
			got := d.fromMember(ctx, from, f.blob.from(d, "farm"))
			if got == nil || errors.Is(got, content.ErrCorrupt) {
				return got
			}
			from, err = d.who(ctx, f.blob.id, from)
		}
		if err != nil {
			return err
		}
	}
	u := d.upstream(f.place)
	if u == nil {
		return fmt.Errorf("blob %s of %s: %w: no member of the farm has it", f.item.Digest, f.place, content.ErrNotFound)
	}
	f.blob.pulls(true)
	defer f.blob.pulls(false)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go d.keepLead(ctx, f.blob.id)
	return u.Fetch(ctx, f.place, f.item, f.credential, registry.Rest{Writer: f.blob.from(d, "registry"), From: f.blob.length()})
}

// pulls notes whether this node asks the registry for it.
func (x *blob) pulls(now bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pulled = now
}

// arrival is a blob to which bytes come from one source.
type arrival struct {
	*blob
	count prometheus.Counter
}

func (x *blob) from(d *Door, source string) arrival {
	return arrival{x, d.bytes.WithLabelValues(source)}
}

// Write implements io.Writer.
func (a arrival) Write(p []byte) (int, error) {
	n, err := a.blob.Write(p)
	a.count.Add(float64(n))
	return n, err
}

// fromMember appends what a member of the farm has, or gets.
func (d *Door) fromMember(ctx context.Context, from peer.ID, x arrival) error {
	for x.length() < x.size {
		call, cancel := context.WithTimeout(ctx, readTimeout)
		b, err := d.readOf(call, from, x.id, x.length())
		cancel()
		if err == nil && len(b) == 0 {
			err = fmt.Errorf("blob %s: %w: the member that brings it in gets nothing", x.id.Digest, content.ErrUnavailable)
		}
		if err == nil {
			_, err = x.Write(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
