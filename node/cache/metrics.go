package cache

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	hits, misses, corrupt, unkept, readErrors, scrubbed prometheus.Counter
}

func newMetrics() metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help})
	}
	return metrics{
		hits:       counter("hits_total", "Reads answered from the cache."),
		misses:     counter("misses_total", "Reads that found no chunk."),
		corrupt:    counter("corrupt_chunks_total", "Chunks that did not match their hash and were dropped."),
		unkept:     counter("unkept_chunks_total", "Chunks passed on without being kept, for want of room."),
		readErrors: counter("read_errors_total", "Chunks that the disk did not give and that were dropped."),
		scrubbed:   counter("scrubbed_bytes_total", "Bytes checked in the background."),
	}
}

func (m metrics) all(c *Cache) []prometheus.Collector {
	of := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help}
	}
	gauge := func(name, help string, get func(Stats) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(of(name, help)), func() float64 { return float64(get(c.Stats())) })
	}
	return []prometheus.Collector{
		m.hits, m.misses, m.corrupt, m.unkept, m.readErrors, m.scrubbed,
		prometheus.NewCounterFunc(prometheus.CounterOpts(of("removed_chunks_total", "Chunks evicted or dropped.")), func() float64 { return float64(c.Evicted()) }),
		gauge("chunks", "Chunks in the cache.", func(s Stats) int64 { return s.Chunks }),
		gauge("pinned_chunks", "Chunks that are pinned.", func(s Stats) int64 { return s.Pinned }),
		gauge("chunk_bytes", "Bytes of the slots of the chunks.", func(s Stats) int64 { return s.Bytes }),
		gauge("disk_bytes", "Bytes of the disk that the cache takes.", func(s Stats) int64 { return s.Disk }),
		gauge("quota_bytes", "Bytes of the disk that the cache may take.", func(s Stats) int64 { return s.Quota }),
		gauge("index_bytes", "Bytes of memory of the index.", func(s Stats) int64 { return s.IndexBytes }),
	}
}
