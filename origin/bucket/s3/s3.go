// Package s3 is a bucket in S3 or a store that speaks like it. Credentials come
// from the standard AWS chain: environment, files, instance roles.
//
// The SDK retries nothing: a conditional write whose reply was lost would be
// answered "exists" by its own retry. What may be tried again is tried here, and
// a conditional write that may have been applied is bucket.ErrUnknown.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// singleMax is the size up to which an object is one PUT; every pack is.
	singleMax = 64 << 20
	// partSize of larger objects, sent one after the other from the caller's own
	// bytes, so that no memory is taken.
	partSize = 16 << 20
	// triesMax and triesFor bound the tries of one request that may be repeated.
	triesMax = 5
	triesFor = 30 * time.Second
	// The transport: a node reads some runs at once, from one host.
	connsPerHost   = 64
	dialTimeout    = 5 * time.Second
	headersTimeout = 30 * time.Second
	// regionDefault is what stores that are not AWS accept.
	regionDefault = "us-east-1"
	// listPage is the most that a store lists at once.
	listPage = 1000
)

// Config says which bucket to open.
type Config struct {
	Location
	// Verbose logs each request.
	Verbose bool
	Log     *slog.Logger
}

// Bucket is one bucket, or a prefix of it. Safe for concurrent use.
type Bucket struct {
	cfg    Config
	client *s3.Client
}

// Open finds the credentials; the store itself is not asked yet.
func Open(ctx context.Context, cfg Config) (*Bucket, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	opts := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(tune)), // it takes AWS_CA_BUNDLE too
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
	if c.Region == "" {
		c.Region = regionDefault
	}
	client := s3.NewFromConfig(c, func(o *s3.Options) {
		o.UsePathStyle = cfg.PathStyle
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	return &Bucket{cfg, client}, nil
}

// tune sets what a node needs of its connections: many at once, to one host.
func tune(t *http.Transport) {
	t.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = 2*connsPerHost, connsPerHost, connsPerHost
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout = dialTimeout, headersTimeout
	t.WriteBufferSize, t.ReadBufferSize, t.DisableCompression = 256<<10, 256<<10, true
}

func (b *Bucket) key(key string) *string {
	if b.cfg.Prefix == "" {
		return aws.String(key)
	}
	return aws.String(b.cfg.Prefix + "/" + key)
}

// try sends a request again while the store is busy or away.
func try[T any](ctx context.Context, b *Bucket, op, key string, send func(context.Context) (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 100 * time.Millisecond
	return backoff.Retry(ctx, func() (T, error) {
		start := time.Now()
		out, err := send(ctx)
		if b.cfg.Verbose {
			b.cfg.Log.Debug("s3", "op", op, "key", key, "took", time.Since(start), "err", err)
		}
		if err == nil {
			return out, nil
		}
		err = b.classify(op, key, err)
		if !errors.Is(err, content.ErrUnavailable) || refused(err) {
			return out, backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(triesMax), backoff.WithMaxElapsedTime(triesFor))
}

// refused reports whether nothing listens at the endpoint: the node notices and
// looks again by itself, so nobody needs to wait here.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	in := &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key)}
	switch {
	case r.Length < 0:
		return nil, fmt.Errorf("get %s: length %d: %w", key, r.Length, content.ErrInvalid)
	case r.Offset < 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d", r.Offset))
	case r.Length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
	case r.Offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", r.Offset))
	}
	out, err := try(ctx, b, "get", key, func(ctx context.Context) (*s3.GetObjectOutput, error) { return b.client.GetObject(ctx, in) })
	if err != nil {
		return nil, err
	}
	info := bucket.Info{Key: key, ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified), Size: aws.ToInt64(out.ContentLength), Now: storeClock(out.ResultMetadata)}
	if _, total, ok := strings.Cut(aws.ToString(out.ContentRange), "/"); ok {
		if _, err := fmt.Sscan(total, &info.Size); err != nil {
			return nil, errors.Join(fmt.Errorf("get %s: %w: content range %q", key, content.ErrCorrupt, aws.ToString(out.ContentRange)), out.Body.Close())
		}
	}
	body := io.ReadCloser(out.Body)
	if r.Offset < 0 && -r.Offset > r.Length && r.Length > 0 { // a part of a suffix is cut here
		body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(out.Body, r.Length), out.Body}
	}
	return &bucket.Object{Info: info, Body: body}, nil
}

// storeClock reads the Date of an answer.
func storeClock(m middleware.Metadata) time.Time {
	if raw, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response); ok {
		if t, err := http.ParseTime(raw.Header.Get("Date")); err == nil {
			return t
		}
	}
	return time.Time{}
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if body.Size() > singleMax {
		return b.putParts(ctx, key, body, cond)
	}
	send := func(ctx context.Context) (*s3.PutObjectOutput, error) {
		in := &s3.PutObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key), Body: io.NewSectionReader(body, 0, body.Size()), ContentLength: aws.Int64(body.Size())}
		in.IfNoneMatch, in.IfMatch = conditions(cond)
		return b.client.PutObject(ctx, in)
	}
	out, err := once(ctx, b, write{"put", key, cond}, send)
	if err != nil {
		return bucket.Info{}, err
	}
	now := storeClock(out.ResultMetadata)
	return bucket.Info{Key: key, Size: body.Size(), ETag: aws.ToString(out.ETag), Modified: now, Now: now}, nil
}

func conditions(cond bucket.Condition) (ifNoneMatch, ifMatch *string) {
	if cond.Absent() {
		ifNoneMatch = aws.String("*")
	}
	if cond.ETag() != "" {
		ifMatch = aws.String(cond.ETag())
	}
	return ifNoneMatch, ifMatch
}

// write names a write for errors, and says when it may happen.
type write struct {
	op, key string
	cond    bucket.Condition
}

// once sends a write: one without a condition as often as it takes, one with a
// condition again only when the store said that it did nothing.
func once[T any](ctx context.Context, b *Bucket, w write, send func(context.Context) (T, error)) (T, error) {
	op, key, cond := w.op, w.key, w.cond
	if cond.IsZero() {
		return try(ctx, b, op, key, send)
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 50 * time.Millisecond
	return backoff.Retry(ctx, func() (T, error) {
		out, err := send(ctx)
		if err == nil {
			return out, nil
		}
		classified := b.classify(op, key, err)
		switch status := statusOf(err); {
		case status == http.StatusConflict, status == http.StatusServiceUnavailable && codeOf(err) == "SlowDown":
			return out, classified // it was not applied
		case status == http.StatusNotFound && cond.ETag() != "" && codeOf(err) != "NoSuchBucket":
			return out, backoff.Permanent(fmt.Errorf("%s %s: %w: it does not exist", op, key, bucket.ErrPrecondition))
		case errors.Is(classified, content.ErrUnavailable) && !refused(err):
			return out, backoff.Permanent(fmt.Errorf("%w: %w", bucket.ErrUnknown, classified))
		}
		return out, backoff.Permanent(classified)
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(triesMax), backoff.WithMaxElapsedTime(triesFor))
}

// putParts stores an object that is too large for one request. Nothing is there
// before the last one, and what a failure leaves is removed.
func (b *Bucket) putParts(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	start, err := try(ctx, b, "create", key, func(ctx context.Context) (*s3.CreateMultipartUploadOutput, error) {
		return b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key)})
	})
	if err != nil {
		return bucket.Info{}, err
	}
	etag, err := b.sendParts(ctx, key, aws.ToString(start.UploadId), body, cond)
	if err != nil {
		_, aerr := b.client.AbortMultipartUpload(context.WithoutCancel(ctx), &s3.AbortMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: start.UploadId})
		if errors.Is(err, bucket.ErrUnknown) { // it may have been completed, which an abort does not undo
			aerr = nil
		}
		return bucket.Info{}, errors.Join(err, aerr)
	}
	return bucket.Info{Key: key, Size: body.Size(), ETag: etag, Modified: time.Now()}, nil
}

func (b *Bucket) sendParts(ctx context.Context, key, id string, body bucket.Body, cond bucket.Condition) (etag string, err error) {
	var parts []types.CompletedPart
	for off := int64(0); off < body.Size(); off += partSize {
		number := aws.Int32(int32(len(parts) + 1))
		size := min(partSize, body.Size()-off)
		out, err := try(ctx, b, "part", key, func(ctx context.Context) (*s3.UploadPartOutput, error) {
			return b.client.UploadPart(ctx, &s3.UploadPartInput{
				Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: &id, PartNumber: number, Body: io.NewSectionReader(body, off, size), ContentLength: aws.Int64(size),
			})
		})
		if err != nil {
			return "", err
		}
		parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: number})
	}
	out, err := once(ctx, b, write{"complete", key, cond}, func(ctx context.Context) (*s3.CompleteMultipartUploadOutput, error) {
		in := &s3.CompleteMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: &id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}
		in.IfNoneMatch, in.IfMatch = conditions(cond)
		return b.client.CompleteMultipartUpload(ctx, in)
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.ETag), nil
}

// List implements bucket.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.cfg.Bucket, Prefix: b.key(prefix), MaxKeys: aws.Int32(listPage)}
		if after != "" {
			in.StartAfter = b.key(after)
		}
		trim := len(aws.ToString(b.key("")))
		for {
			out, err := try(ctx, b, "list", prefix, func(ctx context.Context) (*s3.ListObjectsV2Output, error) { return b.client.ListObjectsV2(ctx, in) })
			if err != nil {
				yield(bucket.Info{}, err)
				return
			}
			for _, o := range out.Contents {
				info := bucket.Info{Key: aws.ToString(o.Key)[trim:], Size: aws.ToInt64(o.Size), ETag: aws.ToString(o.ETag), Modified: aws.ToTime(o.LastModified)}
				if !yield(info, nil) {
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
	_, err := try(ctx, b, "delete", key, func(ctx context.Context) (*s3.DeleteObjectOutput, error) {
		return b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key)})
	})
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}

func statusOf(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

func codeOf(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

// classify says what an error of the store means and what to do about it.
func (b *Bucket) classify(op, key string, err error) error {
	code, status := codeOf(err), statusOf(err)
	cause, advice := content.ErrUnavailable, ""
	switch {
	case code == "NoSuchBucket":
		cause, advice = content.ErrInvalid, fmt.Sprintf("there is no bucket %q; create it, or mend --origin", b.cfg.Bucket)
	case code == "SignatureDoesNotMatch", code == "InvalidAccessKeyId", code == "AccessDenied", status == http.StatusForbidden, status == http.StatusUnauthorized:
		cause, advice = content.ErrForbidden, "the credentials do not allow it; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the AWS profile"
		if code == "RequestTimeTooSkewed" {
			advice = "this machine's clock differs from the store's; set it"
		}
	case status == http.StatusNotFound:
		cause = content.ErrNotFound
	case status == http.StatusPreconditionFailed:
		cause = bucket.ErrPrecondition
	case status == http.StatusRequestedRangeNotSatisfiable:
		cause = content.ErrInvalid
	case status == http.StatusConflict:
		advice = "another writer was at it"
	case status == http.StatusMethodNotAllowed, code == "NotImplemented", status == http.StatusNotImplemented:
		cause, advice = content.ErrReadOnly, "the store does not take this kind of request"
	case status == 0 && strings.Contains(err.Error(), "credentials"):
		cause, advice = content.ErrForbidden, "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile"
	}
	if advice != "" {
		advice = ": " + advice
	}
	return fmt.Errorf("%s %s at s3://%s: %w%s: %w", op, key, b.cfg.Bucket, cause, advice, err)
}

var _ bucket.Bucket = (*Bucket)(nil)
