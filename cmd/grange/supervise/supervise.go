// Package supervise tells the service manager how a node stands: that it is ready, hands
// over, stops, and lives. Where no manager has asked for it (NOTIFY_SOCKET) it says
// nothing. It decides nothing about the node.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes"
)

const (
	// readyEvery is how often a node that is not ready is asked how it stands.
	readyEvery = 200 * time.Millisecond
	// statusEvery is how often one that is ready is asked, where no watchdog waits.
	statusEvery = 15 * time.Second
	// watchdogShare of the watchdog's time lies between two signs of life, and is what an answer may take.
	watchdogShare = 4
	// patience is for how long a process is taken for alive that can't be asked: it opens its data, which journals of
	// many volumes may draw out, or leaves them to its next program. A start that hangs for longer is begun anew.
	patience = 15 * time.Minute
)

// phase says whether the node can be asked.
type phase int

const (
	opening phase = iota
	serving
	leaving
)

// Supervisor watches the node of this process. Safe for concurrent use.
type Supervisor struct {
	node  *client.Client
	log   *slog.Logger
	every time.Duration
	poke  chan struct{} // that something has changed

	mu    sync.Mutex // guards what follows, and the order of what is said
	phase phase
	since time.Time // when that began
	ready bool      // that is what the manager was told last
	note  string    // why it did not hand over
}

// New finds out what the manager wants to know of the node in a data folder.
func New(data string, log *slog.Logger) (*Supervisor, error) {
	node, err := client.New(client.Config{Data: data})
	if err != nil {
		return nil, err
	}
	s := &Supervisor{node: node, log: log, every: statusEvery, poke: make(chan struct{}, 1), since: time.Now()}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("the service manager's WATCHDOG_USEC: %w", err)
	}
	if watchdog > 0 {
		s.every = watchdog / watchdogShare
	}
	return s, nil
}

// Beside watches beside its caller, until end is called, which waits for that.
func (s *Supervisor) Beside() (end func()) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (s *Supervisor) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.NewTimer(s.look(ctx))
		select {
		case <-wait.C:
		case <-s.poke:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// look gives a sign of life if there is one, and returns when to look again. A node that does not answer gives none: its
// API and its parts are what lives, not this goroutine.
func (s *Supervisor) look(ctx context.Context) time.Duration {
	s.mu.Lock()
	if s.phase != serving {
		defer s.mu.Unlock()
		if time.Since(s.since) < patience {
			s.say(daemon.SdNotifyWatchdog)
		}
		return min(s.every, readyEvery)
	}
	s.mu.Unlock()
	asked, cancel := context.WithTimeout(ctx, s.every)
	defer cancel()
	var now api.Status
	err := s.node.Ask(asked, "GET", "/api/status", nil, &now)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase != serving || ctx.Err() != nil: // meanwhile
		return 0
	case err != nil:
		s.log.Warn("the node does not answer itself", "err", err)
		s.say("STATUS=does not answer itself: " + oneLine(err.Error()))
		return s.every
	}
	lines := []string{daemon.SdNotifyWatchdog, "STATUS=" + oneLine(s.describe(now))}
	if now.Ready && !s.ready {
		s.ready = true
		lines = append(lines, daemon.SdNotifyReady)
	}
	s.say(lines...)
	if !s.ready {
		return min(s.every, readyEvery)
	}
	return s.every
}

// describe is what `systemctl status` shows.
func (s *Supervisor) describe(now api.Status) string {
	said := []string{"ready"}
	if !now.Ready {
		said = []string{"waits for " + strings.Join(now.Waiting, ", ")}
	}
	if now.Seed == nil {
		said = append(said, fmt.Sprintf("volumes: %d", now.Volumes), "origin: "+now.Origin.State)
	} else {
		said = append(said, "sends: "+now.Seed.State)
	}
	for _, w := range now.Warnings[:min(len(now.Warnings), 1)] { // `grange status` has all
		said = append(said, "amiss: "+w.About+": "+w.Text)
	}
	if s.note != "" {
		said = append(said, s.note)
	}
	return strings.Join(said, "; ")
}

// Serving says that the API listens: from now on its answers are the signs of life.
func (s *Supervisor) Serving() { s.turn(serving, "") }

// Reloading says that the process may become its next program.
func (s *Supervisor) Reloading() {
	s.turn(leaving, "", daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()), "STATUS=hands over")
}

// Refused says that it does not, and why; the node goes on.
func (s *Supervisor) Refused(why error) { s.turn(serving, "no handover: "+why.Error()) }

// Ending says that the node stops, unless it does to hand over.
func (s *Supervisor) Ending(cause error) {
	if errors.Is(cause, volumes.ErrHandover) {
		return
	}
	s.turn(leaving, "", daemon.SdNotifyStopping, "STATUS=stops")
}

func (s *Supervisor) turn(to phase, note string, lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.since, s.ready, s.note = to, time.Now(), false, note
	if len(lines) > 0 {
		s.say(lines...)
	}
	select {
	case s.poke <- struct{}{}:
	default: // it looks soon
	}
}

// say tells the manager, of whom nothing else depends.
func (s *Supervisor) say(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		s.log.Debug("the service manager was not told", "what", lines, "err", err)
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
