package api

import (
	"context"
	"sync"
	"time"

	"github.com/grangemesh/grange/node"
)

const (
	// sampleInterval and samplesMax: an hour, as fine as a chart of it shows.
	sampleInterval = 10 * time.Second
	samplesMax     = 360
)

// Sample is what a node read in one span of time.
type Sample struct {
	At       time.Time `json:"at" doc:"its end"`
	Bytes    Bytes     `json:"bytes" doc:"what was read, by where it came from"`
	Requests int64     `json:"origin_requests" doc:"sent to the origin, repeated ones too"`
	BytesIn  int64     `json:"origin_bytes" doc:"read from the origin, metadata included"`
}

// History is what a node has read lately.
type History struct {
	Span    float64  `json:"span_seconds" doc:"of a sample"`
	Samples []Sample `json:"samples" doc:"of the last hour, the oldest first"`
}

// history keeps what a node has read lately. Safe for concurrent use.
type history struct {
	moved func() (Bytes, node.Origin) // since the start

	mu      sync.Mutex // guards samples
	samples []Sample
}

// keep takes samples until ctx ends.
func (h *history) keep(ctx context.Context) error {
	tick := time.Tick(sampleInterval)
	bytes, origin := h.moved()
	for {
		select {
		case at := <-tick:
			b, o := h.moved()
			h.add(Sample{at, b.Less(bytes), max(0, o.Requests-origin.Requests), max(0, o.BytesIn-origin.BytesIn)}) // of a store that was opened anew they begin again
			bytes, origin = b, o
		case <-ctx.Done():
			return nil
		}
	}
}

func (h *history) add(s Sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, s)
	h.samples = h.samples[max(0, len(h.samples)-samplesMax):]
}

func (h *history) view() History {
	h.mu.Lock()
	defer h.mu.Unlock()
	return History{sampleInterval.Seconds(), append([]Sample{}, h.samples...)}
}
