package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// objectsAtOnce bounds the objects that are copied at once: a pack, up to 64 MiB, is in memory meanwhile.
	objectsAtOnce = 3
	// memoryMax bounds what else is copied in memory; larger segments are in a file meanwhile.
	memoryMax = 8 << 20
	// thereMax bounds the packs that are known to be at the copy, some 40 bytes each, and sumsMax the segments that were
	// sent, some 70 each: of others the copy is asked.
	thereMax = 4 << 20
	sumsMax  = 512 << 10
	// putTries bounds how often an object is put whose fate is settled by reading: each try is lost to somebody, or on the
	// way.
	putTries = 5
	// movesMax bounds how often the frames of a pack may have moved on, as for readers.
	movesMax = 8
)

// objects copies those of a key space that the copy has not, or of another size, but for stubs of packs that it has whole. Both are listed at once, in order.
func (c *copier) objects(ctx context.Context, space content.KeySpace) error {
	next, stop := iter.Pull2(c.to.List(ctx, string(space), ""))
	defer stop()
	there, bad, listed := next()
	group, copying := errgroup.WithContext(ctx)
	group.SetLimit(objectsAtOnce)
	var err error
	for info, failed := range c.from.Bucket.List(copying, string(space), "") {
		for err = failed; err == nil && listed && bad == nil && there.Key < info.Key; {
			there, bad, listed = next()
		}
		if listed && bad != nil {
			err = fmt.Errorf("list the copy: %w", bad)
		}
		if err != nil {
			break
		}
		present := listed && there.Key == info.Key && there.Size == info.Size
		c.tell(func(r *Report) {
			if r.Looked.Add(info.Size); present {
				r.Present.Add(info.Size)
			}
		})
		if present {
			c.isThere(info.Key)
			continue
		}
		group.Go(func() error { return c.object(copying, info.Key) })
	}
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that the list was told to end
	}
	return err
}

// object copies one that the copy seems to lack. One that is gone was garbage, or is missed by whoever names it.
func (c *copier) object(ctx context.Context, key string) error {
	var bad, err error
	if strings.HasPrefix(key, string(content.KeyPacks)) {
		bad, err = c.pack(ctx, key, 0)
	} else {
		bad, err = c.send(ctx, key, "")
	}
	if err == nil && bad != nil && !errors.Is(bad, content.ErrNotFound) {
		c.fail(Failure{Key: key, Error: content.Line(bad)})
	}
	return err
}

func (c *copier) isThere(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.there) < thereMax {
		c.there[content.HalfSum([]byte(key))] = struct{}{}
	}
}

// sum returns that of a segment that was sent.
func (c *copier) sum(key string) (sum [16]byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum, ok = c.sums[content.HalfSum([]byte(key))]
	return sum, ok
}

// known says what became of a pack, if that is known.
func (c *copier) known(key string) (there bool, bad error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, there = c.there[content.HalfSum([]byte(key))]
	return there, c.bad[key]
}

// bring sees to it that a pack is at the copy, where so many have moved to it. What can't be is bad.
func (c *copier) bring(ctx context.Context, key string, moves int) (bad, err error) {
	there, bad := c.known(key)
	if there || bad != nil {
		return bad, nil
	}
	here, isHere, err := stat(ctx, c.from.Bucket, key)
	if err != nil || !isHere {
		return fmt.Errorf("%s: %w", key, content.ErrNotFound), err
	}
	now, isThere, err := stat(ctx, c.to, key)
	if err == nil && isThere && now.Size == here.Size {
		c.isThere(key)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c.pack(ctx, key, moves)
}

// pack copies a pack that is whole, behind the one that took over what it had. Two that ask at once may both send it.
func (c *copier) pack(ctx context.Context, key string, moves int) (bad, err error) {
	there, bad := c.known(key)
	if there || bad != nil {
		return bad, nil
	}
	id, err := pack.ParseKey(key)
	if err != nil {
		return err, nil
	}
	var b []byte
	d, err := bucket.ReadChecked(ctx, c.from.Bucket, key, pack.SizeMax, func(whole []byte, _ bucket.Info) (*pack.Directory, error) {
		b = whole
		return c.reader.CheckWhole(ctx, id, whole)
	})
	if bad, err = parted(err); err == nil && bad == nil && d.Moved != "" {
		if bad = fmt.Errorf("pack %s: %w: moved more than %d times", id, content.ErrCorrupt, movesMax); moves < movesMax {
			bad, err = c.bring(ctx, d.Moved.Key(), moves+1)
		}
	}
	if err == nil && bad == nil && !(d.Moved != "" && c.isWhole(ctx, id)) {
		err = c.put(ctx, key, bucket.Bytes(b), "")
	}
	switch {
	case err != nil:
	case bad == nil:
		c.isThere(key)
	default:
		bad = fmt.Errorf("%s: %w", key, bad)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.bad) < FailuresMax {
			c.bad[key] = bad
		}
	}
	return bad, err
}

// isWhole reports whether the copy has a pack as it was before it was written anew: names there may need what the one that
// took over has not, and no stub takes its place.
func (c *copier) isWhole(ctx context.Context, id pack.ID) bool {
	f, err := pack.ReadFooter(ctx, c.to, id)
	return err == nil && f.Moved() == ""
}

// stat returns what a list says of one object.
func stat(ctx context.Context, of bucket.Bucket, key string) (info bucket.Info, there bool, err error) {
	for info, err := range of.List(ctx, key, "") {
		return info, err == nil && info.Key == key, err // it is the first that begins so
	}
	return info, false, nil
}

// send copies an object that is no pack, over the one at the copy that has that ETag.
func (c *copier) send(ctx context.Context, key, over string) (bad, err error) {
	o, err := c.from.Bucket.Get(ctx, key, bucket.Range{})
	if bad, err = parted(err); bad != nil || err != nil {
		return bad, err
	}
	body, sum, clear, err := c.read(o)
	defer clear()
	if err == nil {
		err = c.put(ctx, key, body, over)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sums) < sumsMax {
		c.sums[content.HalfSum([]byte(key))] = sum
	}
	return nil, nil
}

// read reads an object into memory, or a file which clear removes.
func (c *copier) read(o *bucket.Object) (body bucket.Body, sum [16]byte, clear func(), err error) {
	defer o.Body.Close()
	var memory bytes.Buffer
	var into io.Writer = &memory
	clear = func() {}
	hash := blake3.New()
	var f *os.File
	if o.Size > memoryMax {
		if f, err = os.CreateTemp(c.cfg.Dir, "copy-*"); err != nil {
			return nil, sum, clear, fmt.Errorf("a working file for %s: %w", o.Key, err)
		}
		into = f
		clear = func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) } // a start clears the folder
	}
	n, err := io.Copy(io.MultiWriter(into, hash), o.Body)
	if err == nil && n != o.Size {
		err = fmt.Errorf("%w: %d bytes of %d came", content.ErrUnavailable, n, o.Size)
	}
	if err != nil {
		return nil, sum, clear, fmt.Errorf("read %s: %w", o.Key, err)
	}
	if body = bucket.Bytes(memory.Bytes()); f != nil {
		body = io.NewSectionReader(f, 0, n)
	}
	return body, [16]byte(hash.Sum(nil)[:16]), clear, nil
}

// put stores an object whose key has the same bytes for ever, or over one that has not and has that ETag. A lost reply is
// settled by looking.
func (c *copier) put(ctx context.Context, key string, body bucket.Body, over string) error {
	cond := bucket.IfAbsent()
	if over != "" {
		cond = bucket.IfMatch(over)
	}
	var err error
	for range putTries {
		_, err = c.to.Put(ctx, key, body, cond)
		if err != nil && !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown) {
			break
		}
		now, there, failed := bucket.Info{}, true, error(nil)
		if err != nil {
			now, there, failed = stat(ctx, c.to, key)
		}
		switch {
		case failed != nil:
			return fmt.Errorf("write %s: %w", key, errors.Join(err, failed))
		case err == nil || there && now.Size == body.Size() && now.ETag != over:
			c.tell(func(r *Report) { r.Sent.Add(body.Size()) })
			return nil
		case there:
			cond = bucket.IfMatch(now.ETag)
		default:
			cond = bucket.IfAbsent()
		}
	}
	return fmt.Errorf("write %s: %w", key, err)
}
