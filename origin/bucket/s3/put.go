package s3

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// singleMax is the size up to which an object is one PUT; every pack is.
	singleMax = 64 << 20
	// partSizeMin of larger objects, and partsMax as S3 has it.
	partSizeMin = 16 << 20
	partsMax    = 10_000
	// partsAtOnce are on their way. They are read from the caller's own body, so
	// that they take no memory here.
	partsAtOnce = 4
)

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if err := cmp.Or(bucket.CheckKey(key), ctx.Err()); err != nil {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, err)
	}
	if body.Size() > singleMax {
		return b.putParts(ctx, key, body, cond)
	}
	in := &s3.PutObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key), ContentLength: aws.Int64(body.Size())}
	in.IfNoneMatch, in.IfMatch = headers(cond)
	out, err := ask(ctx, b, deed{"put", key}, summed(b, part{body, 0, body.Size()}, b.client.PutObject, func(bytes io.Reader, sum *string) { in.Body, in.ContentMD5 = bytes, sum }), in)
	if err != nil {
		return bucket.Info{}, ofWrite(ctx, err, cond)
	}
	now := clock(out.ResultMetadata)
	return bucket.Info{Key: key, Size: body.Size(), ETag: aws.ToString(out.ETag), Modified: now, Now: now}, nil
}

// part is what of a body one request brings.
type part struct {
	body      io.ReaderAt
	off, size int64
}

func (p part) open() io.Reader { return io.NewSectionReader(p.body, p.off, p.size) }

// summed sends a part of a body: with its sum to a store that has refused one without.
// Others are spared it, as content has its own.
func summed[In, Out any](b *Bucket, p part, send call[In, Out], set func(bytes io.Reader, sum *string)) call[In, Out] {
	return func(ctx context.Context, in *In, opts ...func(*s3.Options)) (*Out, error) {
		if !b.sums.Load() {
			set(p.open(), nil)
			if out, err := send(ctx, in, opts...); !wantsSum(err) {
				return out, err
			}
		}
		hash := md5.New()
		if _, err := io.Copy(hash, p.open()); err != nil {
			return nil, err
		}
		set(p.open(), aws.String(base64.StdEncoding.EncodeToString(hash.Sum(nil))))
		out, err := send(ctx, in, opts...)
		if err == nil {
			b.sums.Store(true)
		}
		return out, err
	}
}

// wantsSum reports whether a store has refused a body for want of a checksum.
func wantsSum(err error) bool {
	ae, ok := errors.AsType[smithy.APIError](err)
	if !ok || statusOf(err) != http.StatusBadRequest {
		return false
	}
	text := strings.ToLower(ae.ErrorCode() + " " + ae.ErrorMessage())
	return strings.Contains(text, "md5") || strings.Contains(text, "checksum")
}

func headers(cond bucket.Condition) (ifNoneMatch, ifMatch *string) {
	if cond.Absent() {
		ifNoneMatch = aws.String("*")
	}
	if cond.ETag() != "" {
		ifMatch = aws.String(cond.ETag())
	}
	return ifNoneMatch, ifMatch
}

// ofWrite says what the failure of a write means: it may have been applied unless
// the store, or the connection that was never made, says otherwise.
func ofWrite(ctx context.Context, err error, cond bucket.Condition) error {
	switch {
	case errors.Is(err, content.ErrNotFound) && cond.ETag() != "":
		return fmt.Errorf("%w: it does not exist: %w", bucket.ErrPrecondition, err)
	case errors.Is(err, bucket.ErrBusy) || neverSent(err):
		return err
	case errors.Is(err, content.ErrUnavailable) || ctx.Err() != nil:
		return fmt.Errorf("%w: %w", bucket.ErrUnknown, err)
	}
	return err
}

// putParts stores an object that is too large for one request. Nothing is there
// before the last one, and what a failure leaves is removed.
func (b *Bucket) putParts(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	start, err := ask(ctx, b, deed{"create", key}, b.client.CreateMultipartUpload, &s3.CreateMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key)})
	if err != nil {
		return bucket.Info{}, err // an upload that nobody completes is not there
	}
	parts, err := b.parts(ctx, deed{"part", key}, start.UploadId, body)
	if err == nil {
		in := &s3.CompleteMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: start.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}
		in.IfNoneMatch, in.IfMatch = headers(cond)
		out, cerr := ask(ctx, b, deed{"complete", key}, b.client.CompleteMultipartUpload, in)
		if cerr == nil {
			now := clock(out.ResultMetadata)
			return bucket.Info{Key: key, Size: body.Size(), ETag: aws.ToString(out.ETag), Modified: now, Now: now}, nil
		}
		err = ofWrite(ctx, cerr, cond)
	}
	// An upload that was completed after all is not there to abort. One that can't
	// be aborted now is one of the Leftovers.
	if aerr := b.abort(context.WithoutCancel(ctx), key, start.UploadId); aerr != nil {
		b.cfg.Log.Debug("s3: an upload was left behind", "key", key, "err", aerr)
	}
	return bucket.Info{}, err
}

func (b *Bucket) parts(ctx context.Context, d deed, id *string, body bucket.Body) ([]types.CompletedPart, error) {
	partSize := max(partSizeMin, (body.Size()+partsMax-1)/partsMax)
	parts := make([]types.CompletedPart, (body.Size()+partSize-1)/partSize)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for i := range parts {
		group.Go(func() error {
			number, off := aws.Int32(int32(i+1)), int64(i)*partSize
			size := min(partSize, body.Size()-off)
			in := &s3.UploadPartInput{Bucket: &b.cfg.Bucket, Key: b.key(d.key), UploadId: id, PartNumber: number, ContentLength: &size}
			out, err := ask(ctx, b, d, summed(b, part{body, off, size}, b.client.UploadPart, func(bytes io.Reader, sum *string) { in.Body, in.ContentMD5 = bytes, sum }), in)
			if err == nil {
				parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: number}
			}
			return err
		})
	}
	return parts, group.Wait()
}

func (b *Bucket) abort(ctx context.Context, key string, upload *string) error {
	in := &s3.AbortMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: upload}
	_, err := ask(ctx, b, deed{"abort", key}, b.client.AbortMultipartUpload, in)
	return err
}

// Leftovers removes uploads in parts that were begun longer ago than age and never completed, see bucket.Leftovers.
func (b *Bucket) Leftovers(ctx context.Context, age time.Duration) (n int, bytes int64, err error) {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.cfg.Bucket, Prefix: b.key("")}
	for {
		out, err := ask(ctx, b, deed{"list", "uploads"}, b.client.ListMultipartUploads, in)
		if errors.Is(err, content.ErrReadOnly) { // the store knows no such thing
			return n, bytes, nil
		}
		if err != nil {
			return n, bytes, err
		}
		now := clock(out.ResultMetadata)
		for _, u := range out.Uploads {
			key, ours := strings.CutPrefix(aws.ToString(u.Key), *b.key(""))
			if !ours || bucket.CheckKey(key) != nil || u.Initiated == nil || now.IsZero() || now.Sub(*u.Initiated) <= age {
				continue
			}
			size, err := b.uploaded(ctx, key, u.UploadId)
			if err == nil {
				err = b.abort(ctx, key, u.UploadId)
			}
			if err != nil && !errors.Is(err, content.ErrNotFound) && !errors.Is(err, content.ErrInvalid) { // it has ended meanwhile
				return n, bytes, err
			}
			if err == nil {
				n, bytes = n+1, bytes+size
			}
		}
		if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextKeyMarker) == "" {
			return n, bytes, nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}

// uploaded is how many bytes an upload has brought, in its first thousand parts.
func (b *Bucket) uploaded(ctx context.Context, key string, upload *string) (bytes int64, err error) {
	out, err := ask(ctx, b, deed{"parts", key}, b.client.ListParts, &s3.ListPartsInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: upload})
	if err != nil {
		return 0, err
	}
	for _, p := range out.Parts {
		bytes += aws.ToInt64(p.Size)
	}
	return bytes, nil
}
