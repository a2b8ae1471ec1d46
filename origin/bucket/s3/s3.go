// Package s3 is a bucket in S3 or a store that speaks like it. Credentials come
// from the standard AWS chain: environment, files, instance roles.
//
// Each call is sent once: the SDK's own retry would answer a conditional write
// whose reply was lost with "exists". What may be sent again is known by its
// error, and bucket.Retry sends it.
package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/transport"
	"github.com/grangemesh/grange/origin/content"
)

// regionDefault is what stores that are not AWS accept.
const regionDefault = "us-east-1"

// Config says which bucket to open.
type Config struct {
	Location
	// Verbose logs each request.
	Verbose bool
	// Log may be nil.
	Log *slog.Logger
}

// Bucket is one bucket, or a prefix of it. Safe for concurrent use.
type Bucket struct {
	cfg    Config
	client *s3.Client
	sums   atomic.Bool // the store demands a Content-MD5 of what it is sent
}

// Open finds the credentials; the store itself is not asked yet.
func Open(ctx context.Context, cfg Config) (*Bucket, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	opts := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}), // what it tells is in the error too
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(transport.Tune)), // it takes AWS_CA_BUNDLE too
		// Stores that are not AWS refuse the newer checksums; content has its own.
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if cfg.Region != "" {
		opts = append(opts, config.WithRegion(cfg.Region))
	}
	c, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("AWS configuration: %w: %w", content.ErrInvalid, err)
	}
	c.Region = cmp.Or(c.Region, regionDefault)
	client := s3.NewFromConfig(c, func(o *s3.Options) {
		o.UsePathStyle = cfg.PathStyle
		o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error {
			// It would be signed, and hops rewrite it; nothing is compressed without it.
			_, _ = s.Finalize.Remove("DisableAcceptEncodingGzip") // which few calls have
			return nil
		})
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	return &Bucket{cfg: cfg, client: client}, nil
}

// key returns what a key is called in the store.
func (b *Bucket) key(key string) *string {
	if b.cfg.Prefix == "" {
		return aws.String(key)
	}
	return aws.String(b.cfg.Prefix + "/" + key)
}

type call[In, Out any] func(context.Context, *In, ...func(*s3.Options)) (*Out, error)

// deed is what a request is for, as errors and the log have it.
type deed struct{ op, key string }

// ask sends one request, logs it if wanted, and says what a failure means. One with a
// body that the store sends elsewhere is signed for there and sent again.
func ask[In, Out any](ctx context.Context, b *Bucket, d deed, send call[In, Out], in *In) (*Out, error) {
	start := time.Now()
	out, err := send(ctx, in)
	if there := b.elsewhere(err); there != nil {
		out, err = send(ctx, in, there)
	}
	if b.cfg.Verbose {
		b.cfg.Log.Debug("s3", "op", d.op, "key", d.key, "took", time.Since(start), "err", err)
	}
	if err != nil {
		err = b.explain(ctx, d.op+" "+d.key, err)
	}
	return out, err
}

// elsewhere returns where the store says that the bucket is, or nil. What has no body
// was sent there already, with the signature for here.
func (b *Bucket) elsewhere(err error) func(*s3.Options) {
	re, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || re.Response == nil {
		return nil
	}
	var u *url.URL
	switch followed := re.Response.Request != nil && re.Response.Request.Response != nil; {
	case followed:
		u = re.Response.Request.URL
	case re.HTTPStatusCode() == http.StatusTemporaryRedirect:
		u, _ = re.Response.Location()
	}
	if u == nil {
		return nil
	}
	host := u.Host
	if !b.cfg.PathStyle {
		host = strings.TrimPrefix(host, b.cfg.Bucket+".")
	}
	return func(o *s3.Options) { o.BaseEndpoint = aws.String(u.Scheme + "://" + host) }
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	header, err := transport.Header(r)
	if err = cmp.Or(bucket.CheckKey(key), err); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	in := &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key)}
	if header != "" {
		in.Range = &header
	}
	out, err := ask(ctx, b, deed{"get", key}, b.client.GetObject, in)
	if err != nil {
		return nil, err
	}
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	body, size, err := transport.Open(r, aws.ToString(out.ContentRange), length, out.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	info := bucket.Info{Key: key, Size: size, ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified), Now: clock(out.ResultMetadata)}
	return &bucket.Object{Info: info, Body: body}, nil
}

// clock reads the store's clock off an answer.
func clock(m middleware.Metadata) time.Time {
	if raw, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response); ok {
		if t, err := http.ParseTime(raw.Header.Get("Date")); err == nil {
			return t
		}
	}
	return time.Time{}
}

// List implements bucket.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.cfg.Bucket, Prefix: b.key(prefix), MaxKeys: aws.Int32(bucket.PageSize)}
		if after != "" {
			in.StartAfter = b.key(after)
		}
		root, last := *b.key(""), after
		for {
			out, err := ask(ctx, b, deed{"list", prefix}, b.client.ListObjectsV2, in)
			if err != nil {
				yield(bucket.Info{}, err)
				return
			}
			now := clock(out.ResultMetadata)
			for _, o := range out.Contents {
				key, ours := strings.CutPrefix(aws.ToString(o.Key), root)
				if !ours || bucket.CheckKey(key) != nil {
					continue // a folder's marker, or whatever else people put there
				}
				if key <= last { // a store that repeats itself would be listed for ever
					yield(bucket.Info{}, fmt.Errorf("list %s: %w: the store lists %q after %q", prefix, content.ErrCorrupt, key, last))
					return
				}
				last = key
				if !yield(bucket.Info{Key: key, Size: aws.ToInt64(o.Size), ETag: aws.ToString(o.ETag), Modified: aws.ToTime(o.LastModified), Now: now}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	_, err := ask(ctx, b, deed{"delete", key}, b.client.DeleteObject, &s3.DeleteObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key)})
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}

// Location says where a bucket is.
type Location struct {
	Bucket string
	// Prefix of all keys, without slashes at its ends; "" for none.
	Prefix string
	// Endpoint of a store that is not AWS.
	Endpoint string
	Region   string
	// PathStyle puts the bucket into the path instead of the host name.
	PathStyle bool
}

// ParseURL reads s3://BUCKET/PREFIX?endpoint=…&region=…&path-style=true. Unknown settings are ErrInvalid.
func ParseURL(text string) (Location, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil {
		return Location{}, fmt.Errorf("origin %q: %w: want s3://BUCKET/PREFIX?endpoint=…&region=…; credentials come from the AWS environment and files", text, content.ErrInvalid)
	}
	l := Location{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	if l.Prefix != "" {
		if err := bucket.CheckKey(l.Prefix); err != nil {
			return Location{}, fmt.Errorf("origin %q: prefix: %w", text, err)
		}
	}
	for name, values := range u.Query() {
		value := values[len(values)-1]
		switch name {
		case "endpoint":
			e, err := url.Parse(value)
			if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" {
				return Location{}, fmt.Errorf("origin %q: endpoint %q: %w: want http://HOST:PORT or https://HOST", text, value, content.ErrInvalid)
			}
			l.Endpoint = value
		case "region":
			l.Region = value
		case "path-style":
			if l.PathStyle, err = strconv.ParseBool(value); err != nil {
				return Location{}, fmt.Errorf("origin %q: path-style %q: %w: want true or false", text, value, content.ErrInvalid)
			}
		default:
			return Location{}, fmt.Errorf("origin %q: %w: unknown setting %q; want endpoint, region or path-style", text, content.ErrInvalid, name)
		}
	}
	return l, nil
}
