// Package web reads a bucket that a web server or CDN publishes: the folder of package dir, or a bucket's
// public endpoint. It takes no writes and has no lists.
package web

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/transport"
	"github.com/grangemesh/grange/origin/content"
)

// Bucket is a web root. Safe for concurrent use.
type Bucket struct {
	base   string
	client *http.Client
}

// Open takes the URL of the root, https://HOST/PREFIX; the server is not asked yet.
func Open(root string) (*Bucket, error) {
	u, err := url.Parse(root)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("origin %q: %w: want https://HOST/PREFIX", root, content.ErrInvalid)
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment}
	transport.Tune(t)
	return &Bucket{strings.TrimSuffix(root, "/"), &http.Client{Transport: t}}, nil
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	header, err := transport.Header(r)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/"+strings.ReplaceAll(key, "%", "%25"), nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w: %w", key, content.ErrInvalid, err)
	}
	if header != "" {
		req.Header.Set("Range", header)
	}
	resp, err := b.client.Do(req)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("get %s: %w", key, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("get %s: %w: %w", key, content.ErrUnavailable, err)
	}
	if part := header != "" && resp.StatusCode == http.StatusPartialContent; !part && resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("get %s from %s: %w: %s", key, b.base, meaning(resp.StatusCode), resp.Status), resp.Body.Close())
	}
	body, size, err := transport.Open(r, resp.Header.Get("Content-Range"), resp.ContentLength, resp.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s from %s: %w", key, b.base, err)
	}
	info := bucket.Info{Key: key, ETag: resp.Header.Get("ETag"), Size: size}
	info.Modified, _ = http.ParseTime(resp.Header.Get("Last-Modified")) // zero if it does not say
	info.Now, _ = http.ParseTime(resp.Header.Get("Date"))
	return &bucket.Object{Info: info, Body: body}, nil
}

func meaning(status int) error {
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return content.ErrNotFound
	case http.StatusRequestedRangeNotSatisfiable:
		return content.ErrInvalid
	case http.StatusForbidden, http.StatusUnauthorized:
		return content.ErrForbidden
	case http.StatusTooManyRequests:
		return bucket.ErrSlowDown
	}
	return content.ErrUnavailable
}

// Put implements bucket.Bucket: it is refused.
func (b *Bucket) Put(_ context.Context, key string, _ bucket.Body, _ bucket.Condition) (bucket.Info, error) {
	return bucket.Info{}, fmt.Errorf("put %s: %s: %w", key, b.base, content.ErrReadOnly)
}

// List implements bucket.Bucket: the web has no lists.
func (b *Bucket) List(_ context.Context, prefix, _ string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		yield(bucket.Info{}, fmt.Errorf("list %s: %s: %w", prefix, b.base, errors.ErrUnsupported))
	}
}

// Delete implements bucket.Bucket: it is refused.
func (b *Bucket) Delete(_ context.Context, key string) error {
	return fmt.Errorf("delete %s: %s: %w", key, b.base, content.ErrReadOnly)
}
