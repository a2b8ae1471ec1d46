package cache

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	all                                                 *prometheus.Registry
	hits, misses, corrupt, unkept, readErrors, scrubbed prometheus.Counter
}

func newMetrics(c *Cache) metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return to.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	gauge := func(name, help string, get func(Stats) int64) {
		to.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return float64(get(c.Stats())) })
	}
	to.NewCounterFunc(prometheus.CounterOpts(opts("removed_chunks_total", "Chunks evicted or dropped.")), func() float64 { return float64(c.Evicted()) })
	gauge("chunks", "Chunks in the cache.", func(s Stats) int64 { return s.Chunks })
	gauge("pinned_chunks", "Chunks that are pinned.", func(s Stats) int64 { return s.Pinned })
	gauge("chunk_bytes", "Bytes of the slots of the chunks.", func(s Stats) int64 { return s.Bytes })
	gauge("disk_bytes", "Bytes of the disk that the cache takes.", func(s Stats) int64 { return s.Disk })
	gauge("quota_bytes", "Bytes of the disk that the cache may take.", func(s Stats) int64 { return s.Quota })
	gauge("index_bytes", "Bytes of memory of the index.", func(s Stats) int64 { return s.IndexBytes })
	return metrics{
		all:        all,
		hits:       counter("hits_total", "Reads answered from the cache."),
		misses:     counter("misses_total", "Reads that found no chunk."),
		corrupt:    counter("corrupt_chunks_total", "Chunks that did not match their hash and were dropped."),
		unkept:     counter("unkept_chunks_total", "Chunks passed on without being kept, for want of room."),
		readErrors: counter("read_errors_total", "Chunks that the disk did not give and that were dropped."),
		scrubbed:   counter("scrubbed_bytes_total", "Bytes checked in the background."),
	}
}
