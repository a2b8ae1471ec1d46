// Package spans tells a tracer what was waited for: a read of a guest that its node's cache did
// not answer at once, with what was tried for it, in the farm, the swarm and at the origin; what
// another member brought in for it; and requests of the API with the work that they begin. A
// nil *Spans, and a nil *Span, tell nobody anything and cost nothing.
package spans

import (
	"context"
	"net/http"
	"path"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/p2p/wire"
)

// Spans tells one tracer. Safe for concurrent use.
type Spans struct{ tracer trace.Tracer }

// New returns nil where there is no tracer.
func New(t trace.Tracer) *Spans {
	if t == nil {
		return nil
	}
	return &Spans{t}
}

// Span is something that is under way.
type Span struct {
	of   *Spans
	ctx  context.Context
	span trace.Span
}

// Begin begins a read of this node's own guests, or, with what another member traces, one for that.
func (s *Spans) Begin(name string, caller wire.Trace) *Span {
	if s == nil {
		return nil
	}
	ctx, kind := context.Background(), trace.SpanKindInternal
	if caller != (wire.Trace{}) {
		kind = trace.SpanKindServer
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID(caller[:16]), SpanID: trace.SpanID(caller[16:]), TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	ctx, span := s.tracer.Start(ctx, name, trace.WithSpanKind(kind))
	if !span.IsRecording() { // it was left out by the sampler, and so is what comes of it
		return nil
	}
	return &Span{s, ctx, span}
}

// Name is what others are told of the span, so that what they do for it stands below it.
func (s *Span) Name() (t wire.Trace) {
	if s == nil {
		return t
	}
	c := s.span.SpanContext()
	id, within := c.TraceID(), c.SpanID()
	copy(t[copy(t[:], id[:]):], within[:])
	return t
}

// End tells what a read waited for, each step as a span of its own, and ends the span. What is
// under way still was tried in vain until now.
func (s *Span) End(r why.Read) {
	if s == nil {
		return
	}
	end := r.At.Add(seconds(r.Took))
	for _, step := range r.Steps {
		until := end
		if step.Took > 0 {
			until = step.At.Add(seconds(step.Took))
		}
		_, span := s.of.tracer.Start(s.ctx, step.What, trace.WithTimestamp(step.At), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.Bool("grange.brought", step.Brought), attribute.String("grange.outcome", step.Outcome),
		))
		if step.Peer != "" {
			span.SetAttributes(attribute.String("grange.peer", step.Peer.String()))
		}
		span.End(trace.WithTimestamp(until))
	}
	s.span.SetAttributes(attribute.String("grange.cache", "absent"), attribute.String("grange.source", r.Source), attribute.String("grange.chunk", r.Chunk),
		attribute.Int64("grange.offset", r.Offset), attribute.Int("grange.length", r.Length))
	if r.Error != "" {
		s.span.SetStatus(codes.Error, r.Error)
	}
	s.span.End(trace.WithTimestamp(end))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Serve has requests be spans, below those that their clients say they are of, and the work that
// they begin below them; route is what one is called, "" where it is left out.
func (s *Spans) Serve(next http.Handler, ops *operations.Operations, route func(*http.Request) string) http.Handler {
	if s == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := route(r)
		if name == "" {
			next.ServeHTTP(w, r)
			return
		}
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := s.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path)))
		defer span.End()
		to := &answer{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(to, r.WithContext(ctx))
		span.SetAttributes(attribute.Int("http.response.status_code", to.status))
		if to.status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(to.status))
		}
		if at := w.Header().Get("Location"); to.status == http.StatusAccepted && span.IsRecording() {
			s.operation(context.WithoutCancel(ctx), ops, path.Base(at))
		}
	})
}

// answer notes an answer's status.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController find what it looks for.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// operation tells of work once it has ended, as it does when the node stops at the latest.
func (s *Spans) operation(ctx context.Context, ops *operations.Operations, id string) {
	v, err := ops.Get(id)
	if err != nil { // the answer names something else
		return
	}
	_, span := s.tracer.Start(ctx, "operation "+v.Kind, trace.WithTimestamp(v.Started), trace.WithAttributes(attribute.String("grange.operation", v.ID), attribute.String("grange.target", v.Target)))
	go func() {
		defer span.End()
		if v, err = ops.Wait(ctx, id); err != nil {
			return
		}
		for source, n := range v.Bytes {
			span.SetAttributes(attribute.Int64("grange.bytes."+source, n))
		}
		if v.State != operations.Done {
			span.SetStatus(codes.Error, string(v.State)+": "+v.Error)
		}
	}()
}
