package cache

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	hits, misses, corrupt, dropped, readErrors prometheus.Counter
}

func newMetrics() metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help})
	}
	return metrics{
		hits:       counter("hits_total", "Reads answered from the cache."),
		misses:     counter("misses_total", "Reads that found no chunk."),
		corrupt:    counter("corrupt_chunks_total", "Chunks that did not match their hash and were dropped."),
		dropped:    counter("unkept_chunks_total", "Chunks passed on without being kept, for want of room."),
		readErrors: counter("read_errors_total", "Reads that the disk failed."),
	}
}

func (m metrics) all(c *Cache) []prometheus.Collector {
	gauge := func(name, help string, get func(Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "grange", Subsystem: "cache", Name: name, Help: help},
			func() float64 { return get(c.Stats()) })
	}
	return []prometheus.Collector{
		m.hits, m.misses, m.corrupt, m.dropped, m.readErrors,
		gauge("chunks", "Chunks in the cache.", func(s Stats) float64 { return float64(s.Chunks) }),
		gauge("chunk_bytes", "Bytes of the chunks.", func(s Stats) float64 { return float64(s.Bytes) }),
		gauge("disk_bytes", "Bytes of the disk that the cache takes.", func(s Stats) float64 { return float64(s.Disk) }),
		gauge("evicted_chunks", "Chunks evicted since the start.", func(s Stats) float64 { return float64(s.Evicted) }),
	}
}
