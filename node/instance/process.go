package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// pathDefault is where programs are looked for.
	pathDefault = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// markName is the variable by which processes are known to be an instance's, whoever has started them.
	markName = "GRANGE_INSTANCE_DIR"
	// readyAtFirst and readyAtMost are how often it is looked whether a workload is ready.
	readyAtFirst, readyAtMost = 20 * time.Millisecond, time.Second
	// notYet is how a compaction ends that is under way: EX_TEMPFAIL of sysexits.h.
	notYet = 75
	// compactEvery is how often one is asked for that is under way, and compactMost how long it may take.
	compactEvery, compactMost = time.Second, 30 * time.Minute
)

func (i *hosted) mark() string { return markName + "=" + i.dir }

func (i *hosted) places(e entry) terms.Places {
	return terms.Places{Name: e.Name, Data: i.data(), Config: i.path(configFile), Port: e.Port}
}

// environment is all that a process of the instance has.
func (i *hosted) environment(e entry) []string {
	env := []string{"PATH=" + pathDefault, "HOME=" + i.data(), "LANG=C.UTF-8", "GRANGE_INSTANCE=" + e.Name, "GRANGE_INSTANCE_DATA=" + i.data(), i.mark()}
	if e.Port != 0 {
		env = append(env, "GRANGE_INSTANCE_PORT="+strconv.Itoa(e.Port))
	}
	return append(env, i.places(e).Fill(e.Spec.Env)...)
}

// start starts the workload, unless it runs. One that an earlier try has started, and not noted, is ended before.
func (i *hosted) start(ctx context.Context, e entry) error {
	if i.proc != nil {
		return nil
	}
	if err := process.Sweep(i.mark(), i.cgroup()); err != nil {
		return err
	}
	said := int64(0)
	if info, err := os.Stat(i.path(logFile)); err == nil {
		said = info.Size()
	}
	cfg, err := i.runtime(e).command(ctx, e)
	if err != nil {
		return err
	}
	if cfg.Cgroup, err = i.group(e); err != nil {
		return err
	}
	p, err := process.Start(cfg)
	if err != nil {
		return err
	}
	i.proc = p
	return i.change(func(e *entry) error { e.Process, e.Said = &p.ID, said; return nil })
}

// program is a command of the instance, as it is to be run.
func (i *hosted) program(e entry, command []string) (process.Config, error) {
	limits, err := e.Spec.Limits()
	return process.Config{
		Command: i.places(e).Fill(command), Dir: i.data(), Env: i.environment(e), User: e.Spec.User, Limits: limits, Log: i.path(logFile),
	}, err
}

// configure writes the workload's config file, with what its places stand for.
func (i *hosted) configure(e entry) error {
	if e.Spec.Config == "" {
		return nil
	}
	b, err := os.ReadFile(e.Spec.Config)
	if err != nil {
		return fmt.Errorf("config: %w: %w", content.ErrInvalid, err)
	}
	path := i.path(configFile)
	if err := os.WriteFile(path, []byte(i.places(e).Fill([]string{string(b)})[0]), 0o600); err != nil {
		return err
	}
	return process.Give(path, e.Spec.User)
}

// await returns once the workload is ready. One that an earlier start of the node has begun, and that has ended or does not
// answer, may have been ready, and used: who watches it finds that out, and what it has written stays.
func (i *hosted) await(ctx context.Context, e entry) error {
	if i.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.Spec.Patience(), errLate)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := i.proc.Wait(ctx); ctx.Err() == nil {
			end(errors.Join(errEarly, err))
		}
	}()
	defer func() { end(nil); <-ended }()
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = readyAtFirst, readyAtMost
	lacking := ""
	for {
		err := i.runtime(e).look(ctx, e)
		if err == nil && ctx.Err() == nil {
			return nil
		}
		if ctx.Err() == nil {
			lacking = "; " + content.Line(err)
		}
		timer := time.NewTimer(b.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			switch err := context.Cause(ctx); {
			case !errors.Is(err, errLate) && !errors.Is(err, errEarly):
				return err
			case i.adopted:
				return nil
			default:
				return fmt.Errorf("%w%s%s", err, lacking, i.lastWords())
			}
		}
	}
}

var (
	errElsewhere = fmt.Errorf("%w: this node does not have it; `grange instance ls --all` says who does", content.ErrNotFound)
	errLate      = fmt.Errorf("%w: it was not ready in time, see --ready and --ready-timeout", content.ErrUnavailable)
	errEarly     = fmt.Errorf("%w: it has ended before it was ready", content.ErrUnavailable)
)

// look is nil once the workload is ready.
func (i *hosted) look(ctx context.Context, e entry) error {
	how, what := e.Spec.ReadyWhen()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(e.Port))
	ctx, cancel := context.WithTimeout(ctx, readyAtMost)
	defer cancel()
	switch how {
	case "tcp":
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err
	case "http":
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+what, nil)
		if err != nil {
			return err
		}
		req.Close = true // one that stays open would count as somebody who uses it
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("GET %s: %s", what, resp.Status)
		}
	case "log":
		return i.hasSaid(e.Said, what)
	}
	return nil
}

// stop ends the workload, and all that it has started.
func (i *hosted) stop(ctx context.Context, e entry) error {
	switch err := i.adopt(); {
	case errors.Is(err, content.ErrNotFound):
	case err != nil:
		return err
	default:
		if err := i.runtime(e).part(ctx, e); err != nil {
			i.hub.cfg.Log.Warn("a workload does not end as it is asked to, and is told to", "name", i.name, "err", err)
		}
		if err := i.proc.Stop(ctx, e.Spec.GraceTime()); err != nil {
			return fmt.Errorf("process %d can't be stopped: %w", i.proc.PID, err)
		}
	}
	if err := process.Sweep(i.mark(), i.cgroup()); err != nil {
		return err
	}
	return i.ended()
}

// compact has the workload make itself small.
func (i *hosted) compact(ctx context.Context, e entry) error {
	if len(e.Spec.Compact) == 0 || i.proc == nil {
		return nil
	}
	cfg, err := i.program(e, e.Spec.Compact)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, compactMost, fmt.Errorf("it did not make itself small within %v", compactMost))
	defer cancel()
	for {
		status, err := process.Run(ctx, cfg)
		switch {
		case err != nil:
			return err
		case status == 0:
			return nil
		case status != notYet:
			return fmt.Errorf("%s has ended with %d%s", cfg.Command[0], status, i.lastWords())
		case !i.wait(ctx, compactEvery, nil):
			return context.Cause(ctx)
		}
	}
}
