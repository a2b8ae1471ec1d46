// Package web reads a bucket that a web server or CDN publishes: the folder of
// package dir, or a bucket's public endpoint. It takes no writes.
package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// requestTimeout bounds the time to the first byte of an answer.
	requestTimeout = 30 * time.Second
	connsPerHost   = 32
)

// Bucket is a web root. Safe for concurrent use.
type Bucket struct {
	base   string
	client *http.Client
}

// Open takes the URL of the root, https://HOST/PREFIX; the server is not asked
// yet.
func Open(root string) (*Bucket, error) {
	u, err := url.Parse(root)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("origin %q: %w: want https://HOST/PREFIX", root, content.ErrInvalid)
	}
	return &Bucket{strings.TrimSuffix(root, "/"), &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: connsPerHost, MaxConnsPerHost: connsPerHost,
		ResponseHeaderTimeout: requestTimeout, DisableCompression: true,
	}}}, nil
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/"+key, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w: %w", key, content.ErrInvalid, err)
	}
	switch {
	case r.Offset < 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d", r.Offset))
	case r.Length > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
	case r.Offset > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.Offset))
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w: %w", key, content.ErrUnavailable, err)
	}
	o, err := open(key, r, resp)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get %s from %s: %w", key, b.base, err), resp.Body.Close())
	}
	return o, nil
}

// open checks an answer. A server that ignores the range would have us read the
// object from its start, which a pack is too large for.
func open(key string, r bucket.Range, resp *http.Response) (*bucket.Object, error) {
	info := bucket.Info{Key: key, ETag: resp.Header.Get("ETag"), Size: resp.ContentLength}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		info.Modified = t
	}
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		info.Now = t
	}
	ranged := r != (bucket.Range{})
	switch {
	case resp.StatusCode == http.StatusPartialContent && ranged:
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		if _, err := fmt.Sscan(total, &info.Size); err != nil {
			return nil, fmt.Errorf("%w: content range %q", content.ErrCorrupt, resp.Header.Get("Content-Range"))
		}
	case resp.StatusCode == http.StatusOK && !ranged:
	case resp.StatusCode == http.StatusOK:
		return nil, fmt.Errorf("%w: the server ignores ranges", content.ErrInvalid)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone:
		return nil, content.ErrNotFound
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return nil, content.ErrInvalid
	case resp.StatusCode == http.StatusForbidden, resp.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: %s", content.ErrForbidden, resp.Status)
	default:
		return nil, fmt.Errorf("%w: %s", content.ErrUnavailable, resp.Status)
	}
	body := io.ReadCloser(resp.Body)
	if r.Offset < 0 && r.Length > 0 {
		body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, r.Length), resp.Body}
	}
	return &bucket.Object{Info: info, Body: body}, nil
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

var _ bucket.Bucket = (*Bucket)(nil)
