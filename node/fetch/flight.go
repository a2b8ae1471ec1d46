package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// flightKey names a flight. What others asked this node to bring in flies apart
// from what this node asked of others: a request joins flights that are as deep
// or deeper, else two nodes that each take the other for the lead would wait for
// each other.
type flightKey struct {
	id    content.CID
	depth plan.Depth
}

// flight is one object on its way.
type flight struct {
	key    flightKey
	obj    object
	done   chan struct{}
	data   content.Verified // of a chunk, once done
	node   *pack.MapNode    // of a map node, once done
	source Source
	err    error
	ended  atomic.Bool
}

func (fl *flight) wait(ctx context.Context) (content.Verified, error) {
	select {
	case <-fl.done:
		return fl.data, fl.err
	case <-ctx.Done():
		return content.Verified{}, ctx.Err()
	}
}

// join returns a flight for each object: one under way, or a new one. New ones
// are grouped by run, and each group begins a job.
func (f *Fetcher) join(rs *rootState, objects []object, how request) []*flight {
	out := make([]*flight, len(objects))
	fresh := map[pack.Run][]*flight{}
	var runs []pack.Run
	f.mu.Lock()
	for i, o := range objects {
		fl := f.under(o.id, how.depth)
		if fl == nil {
			fl = &flight{key: flightKey{o.id, how.depth}, obj: o, done: make(chan struct{})}
			f.flights[fl.key] = fl
			run := o.at.Run()
			if fresh[run] == nil {
				runs = append(runs, run)
			}
			fresh[run] = append(fresh[run], fl)
		}
		out[i] = fl
	}
	stopped := f.ctx.Err() != nil
	for _, run := range runs {
		if !stopped {
			f.running.Go(func() { f.fly(rs, run, fresh[run], how) })
		}
	}
	f.mu.Unlock()
	if stopped {
		for _, run := range runs {
			f.fail(fresh[run], errStopped)
		}
	}
	return out
}

// under returns a flight of an object that is under way and as deep as depth or
// deeper. It is called with mu.
func (f *Fetcher) under(id content.CID, depth plan.Depth) *flight {
	for d := depth; int(d) < plan.Depths; d++ {
		if fl := f.flights[flightKey{id, d}]; fl != nil {
			return fl
		}
	}
	return nil
}

// land ends a flight with its bytes. Those of a chunk are in the cache by then,
// if it had room.
func (f *Fetcher) land(rs *rootState, fl *flight, v, page content.Verified, from Source) error {
	if fl.obj.pos.Level > 0 {
		n, err := f.admitNode(rs, fl.obj.pos, v, page)
		if err != nil {
			return err
		}
		fl.node = n
		f.keep(page)
	}
	f.keep(v)
	if !fl.ended.CompareAndSwap(false, true) {
		return nil
	}
	if fl.obj.pos.Level == 0 {
		rs.noteHave(fl.obj.pos.Index)
	}
	fl.data, fl.source = v, from
	f.remove(fl)
	close(fl.done)
	return nil
}

// keep puts bytes into the cache. Without room they are passed on all the same.
func (f *Fetcher) keep(v content.Verified) {
	if err := f.cfg.Cache.Put(v); err != nil && !errors.Is(err, content.ErrNoSpace) {
		f.cfg.Log.Debug("a chunk is not kept", "err", err)
	}
}

func (f *Fetcher) fail(flights []*flight, err error) {
	for _, fl := range flights {
		if fl.ended.CompareAndSwap(false, true) {
			fl.err = err
			f.remove(fl)
			close(fl.done)
		}
	}
}

func (f *Fetcher) remove(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
}

// job drives the plan of one run.
type job struct {
	f       *Fetcher
	rs      *rootState
	run     pack.Run
	flights []*flight
	how     request
	events  chan plan.Event
}

// fly climbs the ladder for the flights of one run until all have landed or
// every source was tried.
func (f *Fetcher) fly(rs *rootState, run pack.Run, flights []*flight, how request) {
	ctx, cancel := context.WithTimeout(f.ctx, jobTimeout)
	defer cancel()
	j := &job{f, rs, run, flights, how, make(chan plan.Event, 4)}
	j.awaitReads(ctx)
	if j.fromCache() { // another flight may have landed since the caller looked
		return
	}
	rs.peers.want(rs)
	p := plan.New(plan.Config{
		Key: runKey(run), Self: plan.Peer(f.cfg.Self), Farm: f.cfg.Identity.Farm,
		Depth: how.depth, From: how.from, FromFarm: how.fromFarm, Guest: how.guest(), Hurry: how.priority == exchange.PriorityGuest,
	})
	if how.guest() {
		hung := time.AfterFunc(plan.HedgeAfter, func() { j.send(plan.Event{Kind: plan.Hung}) })
		defer hung.Stop()
	}
	j.send(plan.Event{Kind: plan.Start})
	for {
		select {
		case e := <-j.events:
			e.View = f.view(rs, j.indexes(), j.level())
			if (e.Kind == plan.Answered || e.Kind == plan.OriginEnded) && e.Missing {
				e.Missing = len(j.left()) > 0
			}
			for _, a := range p.Step(e) {
				if j.act(ctx, a) {
					return
				}
			}
		case <-ctx.Done():
			f.fail(flights, fmt.Errorf("%s: %w: %w", j.what(), content.ErrUnavailable, context.Cause(ctx)))
			return
		}
	}
}

// send never blocks: a job has few actions open at a time, and late events of an
// ended job are dropped.
func (j *job) send(e plan.Event) {
	select {
	case j.events <- e:
	default:
	}
}

// act carries out an action, and reports whether the job has ended.
func (j *job) act(ctx context.Context, a plan.Action) (ended bool) {
	switch a.Kind {
	case plan.Ask:
		go j.ask(ctx, a)
	case plan.ReadOrigin:
		go j.readOrigin(ctx, a.Hedge)
	case plan.WaitSwarm:
		time.AfterFunc(plan.SwarmWait, func() { j.send(plan.Event{Kind: plan.SwarmWaited}) })
	case plan.Done:
		j.f.fail(j.left(), fmt.Errorf("%s: %w", j.what(), content.ErrUnavailable)) // none is left
		return true
	case plan.Fail:
		j.f.fail(j.left(), wrapTried(j.what(), a.Tried))
		return true
	}
	return false
}

func (j *job) what() string {
	return fmt.Sprintf("fetch %s and %d more of root %s", j.flights[0].obj.pos, len(j.flights)-1, j.rs.id)
}

func (j *job) level() int { return j.flights[0].obj.pos.Level }

// left are the flights that have not landed.
func (j *job) left() []*flight {
	var out []*flight
	for _, fl := range j.flights {
		if !fl.ended.Load() {
			out = append(out, fl)
		}
	}
	return out
}

// indexes of what has not landed, of one level, rising.
func (j *job) indexes() []uint64 {
	var out []uint64
	for _, fl := range j.left() {
		if fl.obj.pos.Level == j.level() {
			out = append(out, fl.obj.pos.Index)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fromCache lands what the cache holds, and reports whether that was all.
func (j *job) fromCache() bool {
	for _, fl := range j.left() {
		v, err := j.f.cfg.Cache.Get(fl.obj.id, nil)
		if err != nil {
			continue
		}
		var page content.Verified
		if fl.obj.pos.Level > 0 {
			if page, err = j.f.cfg.Cache.Get(fl.obj.page, nil); err != nil {
				continue
			}
		}
		if err := j.f.land(j.rs, fl, v, page, FromCache); err != nil {
			j.f.cfg.Log.Warn("a map node in the cache can't be used", "err", err)
		}
	}
	return len(j.left()) == 0
}

// ask sends a request to a member, introduces the root if the member has not met
// it, and reports what came of it.
func (j *job) ask(ctx context.Context, a plan.Action) {
	to := peer.ID(a.Peer)
	var o outcome
	for range 2 {
		o = j.want(ctx, to, a)
		if !o.unknown {
			break
		}
		j.rs.mu.Lock()
		envelope := j.rs.envelope
		j.rs.mu.Unlock()
		if len(envelope) == 0 || j.f.cfg.Exchange.Introduce(ctx, to, envelope) != nil {
			break
		}
	}
	e := plan.Event{Kind: plan.Answered, Peer: a.Peer, Missing: len(j.left()) > 0, Refer: plan.Peer(o.refer)}
	switch {
	case o.lied:
		e.Why = "sent wrong bytes"
	case o.err != nil:
		e.Why = o.err.Error()
		if ctx.Err() == nil && !errors.Is(o.err, exchange.ErrBusy) {
			j.f.failed(to)
		}
	case o.unknown:
		e.Why = "does not know the root"
	default:
		j.f.worked(to)
	}
	j.send(e)
}

// outcome is how an ask ended.
type outcome struct {
	err     error
	unknown bool
	lied    bool
	refer   peer.ID
}

func (j *job) want(ctx context.Context, to peer.ID, a plan.Action) (o outcome) {
	indexes := j.indexes()
	if len(indexes) == 0 {
		return o
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	byIndex := map[uint64]*flight{}
	for _, fl := range j.left() {
		byIndex[fl.obj.pos.Index] = fl
	}
	req := exchange.Request{Root: j.rs.id, Level: j.level(), Indexes: indexes, Priority: j.how.priority, Fetch: a.Fetch, Passed: a.Passed}
	o.err = j.f.cfg.Exchange.Want(ctx, to, req, func(r exchange.Reply) {
		switch r := r.(type) {
		case *exchange.Data:
			fl := byIndex[r.Index]
			if fl == nil || fl.ended.Load() {
				return
			}
			if err := j.receive(fl, to, r); err != nil {
				o.lied = true
				j.f.lied(to, err.Error())
				cancel()
			}
		case exchange.Unknown:
			o.unknown = true
		case exchange.Refer:
			o.refer = r.Peer
		}
	})
	return o
}

// receive checks what a member sent and lands it.
func (j *job) receive(fl *flight, from peer.ID, r *exchange.Data) error {
	v, err := content.Verify(fl.obj.id, r.Body)
	if err != nil {
		return err
	}
	var page content.Verified
	if fl.obj.pos.Level > 0 {
		if page, err = content.Verify(fl.obj.page, r.Page); err != nil {
			return err
		}
	}
	r.Take()
	source := j.f.sourceOf(from)
	j.f.count(source, len(v.Bytes())+len(page.Bytes()))
	return j.f.land(j.rs, fl, v, page, source)
}

// read is one object that is being read from the origin, for all jobs that want
// it. It waits for the origin alone, so any job may wait for it.
type read struct {
	obj  object
	done chan struct{}
	// v is the bytes, page those of a map node's page; zero if they did not come.
	v, page content.Verified
}

// shared is a flight of a job, and the read that is to land it.
type shared struct {
	fl *flight
	r  *read
}

// awaitReads lands what another job is reading from the origin right now: nobody
// else could bring it sooner.
func (j *job) awaitReads(ctx context.Context) {
	var others []shared
	j.f.mu.Lock()
	for _, fl := range j.flights {
		if r := j.f.reading[fl.obj.id]; r != nil {
			others = append(others, shared{fl, r})
		}
	}
	j.f.mu.Unlock()
	if err := j.landRead(ctx, others); err != nil {
		j.f.cfg.Log.Debug("what was read beside can't be used", "what", j.what(), "err", err)
	}
}

// readOrigin reads the run with one request: all of the root's chunks in it that
// the cache lacks. What another job is reading already is waited for, so a chunk
// is never read twice at once.
func (j *job) readOrigin(ctx context.Context, hedge bool) {
	err := j.readRun(ctx, hedge)
	e := plan.Event{Kind: plan.OriginEnded, Missing: len(j.left()) > 0}
	if err != nil {
		e.Why = err.Error()
	}
	j.send(e)
}

func (j *job) readRun(ctx context.Context, hedge bool) error {
	origin := j.f.cfg.Origin()
	if origin == nil {
		return fmt.Errorf("%w: not reachable from this node", content.ErrUnavailable)
	}
	mine, wanted := j.claim(hedge)
	err := j.readClaimed(ctx, origin, j.lacking(mine), hedge)
	j.f.mu.Lock()
	for _, r := range mine {
		delete(j.f.reading, r.obj.id)
		close(r.done)
	}
	j.f.mu.Unlock()
	return errors.Join(err, j.landRead(ctx, wanted))
}

// landRead waits for reads, and lands the flights whose bytes came.
func (j *job) landRead(ctx context.Context, wanted []shared) (err error) {
	for _, w := range wanted {
		select {
		case <-w.r.done:
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
		if w.r.v.Bytes() != nil {
			err = errors.Join(err, j.f.land(j.rs, w.fl, w.r.v, w.r.page, FromOrigin))
		}
	}
	return err
}

// claim takes what this job is to read: what its flights miss, and the other
// chunks of the run that this root has, as read together they cost one request. A
// hedge reads only what is missing.
func (j *job) claim(hedge bool) (mine []*read, wanted []shared) {
	left := j.left()
	var more []object
	if j.level() == 0 && !hedge {
		more = j.neighbours()
	}
	f := j.f
	f.mu.Lock()
	defer f.mu.Unlock()
	begin := func(o object) *read {
		r := &read{obj: o, done: make(chan struct{})}
		f.reading[o.id] = r
		mine = append(mine, r)
		return r
	}
	for _, fl := range left {
		r := f.reading[fl.obj.id]
		if r == nil {
			r = begin(fl.obj)
		}
		wanted = append(wanted, shared{fl, r})
	}
	for _, o := range more {
		if len(mine) > 0 && f.reading[o.id] == nil {
			begin(o)
		}
	}
	slices.SortFunc(mine, func(a, b *read) int { return cmp.Compare(a.obj.at.Offset, b.obj.at.Offset) })
	return mine, wanted
}

// lacking lands those of the claimed that have come into the cache since they
// were looked for, and returns the others. Who read them put them there before
// the claim could be had.
func (j *job) lacking(mine []*read) []*read {
	j.fromCache()
	left := map[content.CID]bool{}
	for _, fl := range j.left() {
		left[fl.obj.id] = true
	}
	own := map[content.CID]bool{}
	for _, fl := range j.flights {
		own[fl.obj.id] = true
	}
	return slices.DeleteFunc(slices.Clone(mine), func(r *read) bool {
		if own[r.obj.id] {
			return !left[r.obj.id]
		}
		return j.f.cfg.Cache.Has(r.obj.id)
	})
}

// neighbours are the chunks of the run that the leaf of the wanted ones names and
// the cache lacks.
func (j *job) neighbours() []object {
	wanted := map[content.CID]bool{}
	for _, fl := range j.flights {
		wanted[fl.obj.id] = true
	}
	up, _ := j.flights[0].obj.pos.Parent()
	leaf := j.rs.memory(up)
	if leaf == nil {
		return nil
	}
	var out []object
	for i := range leaf.Page.Len() {
		at, ok := leaf.Page.Child(i)
		if id := leaf.Node.Entry(i); ok && at.Run() == j.run && !wanted[id] && !j.f.cfg.Cache.Has(id) {
			wanted[id] = true
			out = append(out, object{pos: up.Child(i), id: id, at: at})
		}
	}
	return out
}

// readClaimed reads with one request and keeps what came. Bytes that are bad, or
// did not come, leave their reads empty.
func (j *job) readClaimed(ctx context.Context, origin Origin, mine []*read, hedge bool) error {
	if len(mine) == 0 {
		return nil
	}
	var frames []pack.Extent
	stored := 0
	for _, r := range mine {
		frames = append(frames, pack.Extent{CID: r.obj.id, Location: r.obj.at})
		if r.obj.pos.Level > 0 {
			frames = append(frames, r.obj.pair.Page)
		}
	}
	for _, e := range frames {
		stored += int(e.Length)
	}
	if hedge {
		j.f.metrics.hedgedBytes.Add(int64(stored))
	}
	got, err := origin.ReadFrames(ctx, frames)
	if len(got) != len(frames) {
		return errors.Join(err, ctx.Err())
	}
	j.f.count(FromOrigin, stored)
	at := 0
	for _, r := range mine {
		r.v = got[at]
		at++
		if r.obj.pos.Level > 0 {
			if r.page = got[at]; r.page.Bytes() == nil {
				r.v = content.Verified{}
			}
			at++
		} else if r.v.Bytes() != nil {
			j.f.keep(r.v)
			j.rs.noteHave(r.obj.pos.Index)
		}
	}
	return err
}
