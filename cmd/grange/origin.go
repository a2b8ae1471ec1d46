package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/bucket/web"
	"github.com/grangemesh/grange/origin/content"
)

// originOpener opens the bucket that an --origin names.
type originOpener struct {
	log      *slog.Logger
	verbose  bool
	rate     int64   // bytes a second, 0 for no limit
	requests float64 // a second, 0 for no limit
}

// open counts next to the store: each try is a request, and one that waits for a turn,
// or is not sent, is none. How often it is tried again is for the node to say.
func (o originOpener) open(ctx context.Context, text string) (bucket.Bucket, *bucket.Metrics, error) {
	b, err := o.openURL(ctx, text)
	if err != nil {
		return nil, nil, err
	}
	counted := bucket.WithMetrics(b)
	b = bucket.Beside(bucket.Breaker(counted, bucket.BreakerConfig{}))
	return bucket.Limit(b, bucket.LimitConfig{BytesPerSecond: o.rate, RequestsPerSecond: o.requests}), counted, nil
}

func (o originOpener) openURL(ctx context.Context, text string) (bucket.Bucket, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", content.ErrInvalid, err)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(filepath.FromSlash(u.Path)) {
			return nil, fmt.Errorf("%w: want file:///ABSOLUTE/FOLDER", content.ErrInvalid)
		}
		return dir.Open(ctx, filepath.FromSlash(u.Path), o.log)
	case "s3":
		l, err := s3.ParseURL(text)
		if err != nil {
			return nil, err
		}
		return s3.Open(ctx, s3.Config{Location: l, Verbose: o.verbose, Log: o.log})
	case "https", "http":
		return web.Open(text)
	}
	return nil, fmt.Errorf("%w: scheme %q; want s3, file or https, as in file:///folder", content.ErrInvalid, u.Scheme)
}
