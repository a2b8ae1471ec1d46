// Package traces sends spans to a collector of OpenTelemetry, by OTLP over HTTP. What its
// documents say of the environment (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS,
// OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_… and the others) is honoured.
package traces

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

const (
	// pathDefault is where a collector takes traces.
	pathDefault = "/v1/traces"
	// complainEvery is how often it is said that a collector takes none, and stopTimeout how long
	// a stop waits for the last to be sent.
	complainEvery = time.Minute
	stopTimeout   = 3 * time.Second
)

// Config says whose spans are sent where.
type Config struct {
	// URL is of the collector, such as http://127.0.0.1:4318; without a path, what is usual.
	URL string
	// Version and Node are what the spans say of who sends them.
	Version, Node string
	Log           *slog.Logger
}

// Check reports what is wrong with a URL.
func Check(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--traces %q: want the URL of a collector that takes OTLP over HTTP, as http://127.0.0.1:4318", text)
	}
	return nil
}

// Open begins to send: what the tracer is told goes out in the background, and what can't is
// dropped. Stop sends the last. OTEL_SDK_DISABLED=true has a nil tracer.
func Open(ctx context.Context, c Config) (t trace.Tracer, stop func(), err error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return nil, func() {}, nil
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, nil, Check(c.URL)
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = pathDefault
	}
	out, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return nil, nil, fmt.Errorf("--traces: %w", err)
	}
	// What the environment says comes last, and counts.
	of, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "grange"), attribute.String("service.version", c.Version), attribute.String("service.instance.id", c.Node),
	), resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("--traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&complains{SpanExporter: out, log: c.Log, when: rate.Sometimes{Interval: complainEvery}}), sdktrace.WithResource(of))
	return p.Tracer("github.com/grangemesh/grange"), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			c.Log.Debug("the last traces were not sent", "err", err)
		}
	}, nil
}

// complains has failures go to the node's log, where the library would tell what all of a process share.
type complains struct {
	sdktrace.SpanExporter
	log  *slog.Logger
	when rate.Sometimes
}

// ExportSpans implements sdktrace.SpanExporter.
func (c *complains) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := c.SpanExporter.ExportSpans(ctx, spans); err != nil {
		c.when.Do(func() {
			c.log.Warn("traces are lost: the collector of --traces does not take them", "err", err)
		})
	}
	return nil
}
