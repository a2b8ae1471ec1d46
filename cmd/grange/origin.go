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

func (o originOpener) open(ctx context.Context, text string) (bucket.Bucket, error) {
	b, err := o.openURL(ctx, text)
	if err != nil {
		return nil, err
	}
	b = bucket.Breaker(b, bucket.BreakerConfig{})
	b = bucket.Limit(b, bucket.LimitConfig{BytesPerSecond: o.rate, RequestsPerSecond: o.requests})
	return bucket.Retry(b, bucket.RetryConfig{}), nil
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
		return dir.Open(filepath.FromSlash(u.Path))
	case "s3":
		l, err := s3.ParseURL(text)
		if err != nil {
			return nil, err
		}
		return s3.Open(ctx, s3.Config{Location: l, Verbose: o.verbose, Log: o.log})
	case "https", "http":
		return web.Open(text)
	}
	return nil, fmt.Errorf("%w: scheme %q; want s3, file or https", content.ErrInvalid, u.Scheme)
}
