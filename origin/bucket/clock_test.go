package bucket_test

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/bucket"
)

// late is a store whose clock is behind.
type late struct {
	bucket.Bucket
	by time.Duration
}

func (l late) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	return bucket.Info{Key: key, Now: time.Now().Add(-l.by)}, nil
}

// TestMetricsHaveTheStoresClock as it was when it answered last.
func TestMetricsHaveTheStoresClock(t *testing.T) {
	m := bucket.WithMetrics(late{by: time.Hour})
	if _, err := m.Put(t.Context(), "a", bucket.Bytes(nil), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	all := prometheus.NewRegistry()
	all.MustRegister(m.Collectors()...)
	families, err := all.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "grange_bucket_clock_offset_seconds" {
			if v := f.GetMetric()[0].GetGauge().GetValue(); v > -3599 || v < -3601 {
				t.Errorf("%v seconds", v)
			}
			return
		}
	}
	t.Error("it is not shown")
}
