package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

func statusOf(err error) int {
	if re, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		return re.HTTPStatusCode()
	}
	return 0
}

// neverSent reports whether no connection came about.
func neverSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// explain says what an error of the store means and what to do about it.
func (b *Bucket) explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil { // the caller went away, which says nothing about the store
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	advice, cause := b.meaning(err)
	if advice != "" {
		advice = ": " + advice
	}
	return fmt.Errorf("%s at s3://%s: %w%s: %w", what, b.cfg.Bucket, cause, advice, answer{err})
}

// answer is an error of the SDK as people read it: what the store said, or what became
// of the connection, once.
type answer struct{ error }

func (a answer) Unwrap() error { return a.error }

func (a answer) Error() string {
	if sent, ok := errors.AsType[*url.Error](a.error); ok {
		return sent.Err.Error()
	}
	api, isAPI := errors.AsType[smithy.APIError](a.error)
	re, answered := errors.AsType[*awshttp.ResponseError](a.error)
	if isAPI && answered {
		return fmt.Sprintf("%d %s: %s (request %s)", re.HTTPStatusCode(), api.ErrorCode(), api.ErrorMessage(), re.ServiceRequestID())
	}
	return a.error.Error()
}

// inPath is what to try where a store may not know the bucket by its host name.
func (b *Bucket) inPath() string {
	if b.cfg.PathStyle || b.cfg.Endpoint == "" {
		return ""
	}
	return "; a store that wants the bucket in the path needs path-style=true in the URL"
}

// reasons are what answers mean, by the store's code for them or the status; what comes first counts.
func (b *Bucket) reasons() []reason {
	return []reason{
		{"NoSuchBucket", fmt.Sprintf("there is no bucket %q; create it, or correct the URL%s", b.cfg.Bucket, b.inPath()), content.ErrInvalid},
		{"RequestTimeTooSkewed RequestExpired", "this machine's clock is not the store's; set it", content.ErrForbidden},
		{"SignatureDoesNotMatch", "the secret is wrong, or a hop between changes what is signed; look at AWS_SECRET_ACCESS_KEY and the AWS profile, and have the hop pass requests on as they are", content.ErrForbidden},
		{"InvalidAccessKeyId ExpiredToken InvalidToken XAdminUserNotFound", "the credentials are wrong; look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the AWS profile", content.ErrForbidden},
		{"AuthorizationHeaderMalformed PermanentRedirect IllegalLocationConstraintException", "the bucket is in another region; set region= in the URL", content.ErrInvalid},
		{"RequestTimeout InternalError", "", content.ErrUnavailable},
		{"NoSuchKey NotFound", "", content.ErrNotFound}, // any other 404 must not pass for an absent object
		{"401 403", "the credentials do not allow it; grant the key s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket", content.ErrForbidden},
		{"412", "", bucket.ErrPrecondition},
		{"416", "", content.ErrInvalid},
		{"409", "another writer was at it", bucket.ErrBusy}, // two writes at once, and this one was not carried out
		{"429 SlowDown SlowDownRead SlowDownWrite", "", bucket.ErrSlowDown},
		{"405 501", "the store does not take this kind of request" + b.inPath(), content.ErrReadOnly},
		{"307", "the store sends it elsewhere; set endpoint= or region= in the URL", content.ErrUnavailable},
		{"507", "", content.ErrNoSpace},
	}
}

type reason struct {
	answers string // words
	advice  string
	cause   error
}

func (b *Bucket) meaning(err error) (advice string, cause error) {
	if text := err.Error(); strings.Contains(text, "get credentials") || strings.Contains(text, "get identity") {
		// The status, if there is one, is that of a host that was asked for them.
		return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile", content.ErrForbidden
	}
	code, status := "", statusOf(err)
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	for _, r := range b.reasons() {
		if answers := strings.Fields(r.answers); slices.Contains(answers, code) || slices.Contains(answers, strconv.Itoa(status)) {
			return r.advice, r.cause
		}
	}
	switch {
	case status == 0:
		return b.ofConnection(err)
	case wantsSum(err):
		return "the store demands a checksum of another kind than Content-MD5", content.ErrInvalid
	case status >= 300 && status < 500:
		return strings.TrimPrefix(b.inPath(), "; "), content.ErrInvalid
	}
	return "", content.ErrUnavailable
}

// ofConnection says what it means that there was no answer at all.
func (b *Bucket) ofConnection(err error) (advice string, cause error) {
	switch dns, ok := errors.AsType[*net.DNSError](err); {
	case ok && dns.IsNotFound:
		return fmt.Sprintf("no host is called %q; look at endpoint= and region= in the URL%s", dns.Name, b.inPath()), content.ErrUnavailable
	case neverSent(err):
		return "nothing answers there; is the store running, and is endpoint= in the URL right?", content.ErrUnavailable
	case strings.Contains(err.Error(), "x509:"):
		return "its certificate is not trusted here; AWS_CA_BUNDLE names a file of more authorities" + b.inPath(), content.ErrUnavailable
	}
	return "", content.ErrUnavailable
}
