package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// Expiring says which rule of the bucket's lifecycle takes away, or puts out of reach, what is
// in use below the prefix: "" for none. Rules for old versions and for unfinished uploads do
// no harm. A store may not know of rules, or not tell this user, which is an error.
func (b *Bucket) Expiring(ctx context.Context) (rule string, err error) {
	out, err := ask(ctx, b, deed{"read the lifecycle", "of the bucket"}, b.client.GetBucketLifecycleConfiguration, &s3.GetBucketLifecycleConfigurationInput{Bucket: &b.cfg.Bucket})
	if api, ok := errors.AsType[smithy.APIError](err); ok && api.ErrorCode() == "NoSuchLifecycleConfiguration" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, r := range out.Rules {
		if harm := b.harm(r); harm != "" {
			return fmt.Sprintf("%q %s", aws.ToString(r.ID), harm), nil
		}
	}
	return "", nil
}

// harm says what a rule does to objects of ours.
func (b *Bucket) harm(r types.LifecycleRule) string {
	//lint:ignore SA1019 rules that were made before there were filters have it still
	of := aws.ToString(r.Prefix)
	if f := r.Filter; f != nil {
		and := aws.ToString(f.Prefix)
		if f.And != nil {
			and = aws.ToString(f.And.Prefix)
		}
		if of += and; f.Tag != nil || f.And != nil && len(f.And.Tags) > 0 { // ours have none
			return ""
		}
	}
	ours := *b.key("")
	if r.Status != types.ExpirationStatusEnabled || !strings.HasPrefix(ours, of) && !strings.HasPrefix(of, ours) {
		return ""
	}
	if e := r.Expiration; e != nil && (e.Date != nil || aws.ToInt32(e.Days) > 0) {
		return fmt.Sprintf("deletes what lies below %q there after a time", of)
	}
	for _, t := range r.Transitions {
		if c := t.StorageClass; c == types.TransitionStorageClassGlacier || c == types.TransitionStorageClassDeepArchive {
			return fmt.Sprintf("moves what lies below %q there to %s, where nothing is read at once", of, c)
		}
	}
	return ""
}
