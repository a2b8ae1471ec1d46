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
	out, err := ask(ctx, b, "put", key, summed(b, body, 0, body.Size(), func(part io.Reader, sum *string, opts ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
		in := &s3.PutObjectInput{Bucket: &b.cfg.Bucket, Key: b.key(key), Body: part, ContentLength: aws.Int64(body.Size()), ContentMD5: sum}
		in.IfNoneMatch, in.IfMatch = headers(cond)
		return b.client.PutObject(ctx, in, opts...)
	}))
	if err != nil {
		return bucket.Info{}, ofWrite(ctx, err, cond)
	}
	now := clock(out.ResultMetadata)
	return bucket.Info{Key: key, Size: body.Size(), ETag: aws.ToString(out.ETag), Modified: now, Now: now}, nil
}

// summed sends a part of a body: with its sum to a store that has refused one without.
// Others are spared it, as content has its own.
func summed[T any](b *Bucket, body io.ReaderAt, off, size int64, send func(io.Reader, *string, ...func(*s3.Options)) (T, error)) func(...func(*s3.Options)) (T, error) {
	return func(opts ...func(*s3.Options)) (out T, err error) {
		if !b.sums.Load() {
			if out, err = send(io.NewSectionReader(body, off, size), nil, opts...); !wantsSum(err) {
				return out, err
			}
		}
		hash := md5.New()
		if _, err := io.Copy(hash, io.NewSectionReader(body, off, size)); err != nil {
			return out, err
		}
		if out, err = send(io.NewSectionReader(body, off, size), aws.String(base64.StdEncoding.EncodeToString(hash.Sum(nil))), opts...); err == nil {
			b.sums.Store(true)
		}
		return out, err
	}
}

// wantsSum reports whether a store has refused a body for want of a checksum.
func wantsSum(err error) bool {
	var ae smithy.APIError
	if !errors.As(err, &ae) || statusOf(err) != http.StatusBadRequest {
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
	start, err := ask(ctx, b, "create", key, func(opts ...func(*s3.Options)) (*s3.CreateMultipartUploadOutput, error) {
		return b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key)}, opts...)
	})
	if err != nil {
		return bucket.Info{}, err // an upload that nobody completes is not there
	}
	up := upload{b, key, aws.ToString(start.UploadId)}
	parts, err := up.parts(ctx, body)
	if err == nil {
		info, cerr := up.complete(ctx, parts, cond)
		if info.Size = body.Size(); cerr == nil {
			return info, nil
		}
		err = cerr
	}
	// An upload that was completed after all is not there to abort. One that can't
	// be aborted now is removed by the store's own rule, if it has one.
	_, aerr := ask(context.WithoutCancel(ctx), b, "abort", key, func(opts ...func(*s3.Options)) (*s3.AbortMultipartUploadOutput, error) {
		return b.client.AbortMultipartUpload(context.WithoutCancel(ctx), &s3.AbortMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: start.UploadId}, opts...)
	})
	if aerr != nil {
		b.cfg.Log.Debug("s3: an upload was left behind", "key", key, "err", aerr)
	}
	return bucket.Info{}, err
}

type upload struct {
	b       *Bucket
	key, id string
}

func (u upload) parts(ctx context.Context, body bucket.Body) ([]types.CompletedPart, error) {
	partSize := max(partSizeMin, (body.Size()+partsMax-1)/partsMax)
	parts := make([]types.CompletedPart, (body.Size()+partSize-1)/partSize)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for i := range parts {
		group.Go(func() error {
			number, off := aws.Int32(int32(i+1)), int64(i)*partSize
			size := min(partSize, body.Size()-off)
			out, err := ask(ctx, u.b, "part", u.key, summed(u.b, body, off, size, func(part io.Reader, sum *string, opts ...func(*s3.Options)) (*s3.UploadPartOutput, error) {
				return u.b.client.UploadPart(ctx, &s3.UploadPartInput{
					Bucket: &u.b.cfg.Bucket, Key: u.b.key(u.key), UploadId: &u.id, PartNumber: number, Body: part, ContentLength: &size, ContentMD5: sum,
				}, opts...)
			}))
			if err == nil {
				parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: number}
			}
			return err
		})
	}
	return parts, group.Wait()
}

func (u upload) complete(ctx context.Context, parts []types.CompletedPart, cond bucket.Condition) (bucket.Info, error) {
	out, err := ask(ctx, u.b, "complete", u.key, func(opts ...func(*s3.Options)) (*s3.CompleteMultipartUploadOutput, error) {
		in := &s3.CompleteMultipartUploadInput{Bucket: &u.b.cfg.Bucket, Key: u.b.key(u.key), UploadId: &u.id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}
		in.IfNoneMatch, in.IfMatch = headers(cond)
		return u.b.client.CompleteMultipartUpload(ctx, in, opts...)
	})
	if err != nil {
		return bucket.Info{}, ofWrite(ctx, err, cond)
	}
	now := clock(out.ResultMetadata)
	return bucket.Info{Key: u.key, ETag: aws.ToString(out.ETag), Modified: now, Now: now}, nil
}
