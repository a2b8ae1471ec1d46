package pack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// uploadTries is how often a pack is sent while its fate is unknown: with the
	// waits below, about a minute of a store that does not answer.
	uploadTries = 8
	// uploadWaitMin and uploadWaitMax bound the wait between two tries, which grows by uploadWaitGrowth.
	uploadWaitMin    = 200 * time.Millisecond
	uploadWaitMax    = 15 * time.Second
	uploadWaitGrowth = 3
)

// SignedBy has a member vouch for packs of a scope, at the time that now says; nil where others
// would not refer to packs of that scope on its word.
func SignedBy(signer trust.Signer, scope content.Scope, now func() time.Time) Sign {
	if !signer.Identity().MayStore(scope) {
		return nil
	}
	return func(id ID, directory content.CID) ([]byte, error) {
		return signer.SealPack(trust.Pack{ID: string(id), Scope: id.Scope(), Directory: directory}, now())
	}
}

// Store puts a pack under its name, which is random: whoever finds the name taken finds an earlier try of
// this very call, or something is badly wrong. So a lost reply is settled by reading the footer, and one that
// can't be had is asked for again, for a minute or so. It returns when the pack was there, by the store's
// clock; zero where nobody can say, as an earlier try may have been there long before.
func Store(ctx context.Context, to bucket.Bucket, s Sealed) (time.Time, error) {
	doubt := false
	try := func() (time.Time, error) {
		info, err := to.Put(ctx, s.ID.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent())
		switch {
		case err == nil && doubt:
			return time.Time{}, nil
		case err == nil, errors.Is(err, content.ErrUnavailable) && !errors.Is(err, bucket.ErrUnknown):
			return info.Now, err
		case errors.Is(err, bucket.ErrUnknown), errors.Is(err, bucket.ErrPrecondition):
			doubt = true
			return time.Time{}, settle(ctx, to, s, err)
		}
		return time.Time{}, backoff.Permanent(err)
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.Multiplier = uploadWaitMin, uploadWaitMax, uploadWaitGrowth
	at, err := backoff.Retry(ctx, try, backoff.WithBackOff(wait), backoff.WithMaxTries(uploadTries))
	if err != nil {
		return at, fmt.Errorf("upload pack %s: %w", s.ID, err)
	}
	return at, nil
}

// settle learns what became of a Put that ended with putErr. Nil means that the
// pack is there; a permanent error, that something else is.
func settle(ctx context.Context, from bucket.Bucket, s Sealed, putErr error) error {
	f, err := ReadFooter(ctx, from, s.ID)
	switch {
	case err == nil && f == s.Footer:
		return nil
	case err == nil || errors.Is(err, content.ErrCorrupt):
		return backoff.Permanent(fmt.Errorf("%w: the name is taken by another object", content.ErrExists))
	case errors.Is(err, content.ErrNotFound):
		return putErr
	case errors.Is(err, content.ErrForbidden):
		return backoff.Permanent(err)
	}
	return err
}
