package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// dialTimeout, tlsTimeout and headerTimeout bound what a registry may take to answer.
	dialTimeout, tlsTimeout, headerTimeout = 2 * time.Second, 4 * time.Second, 20 * time.Second
	// HeadTimeout bounds the question what a tag stands for, or whether something may be read: a client
	// waits for it, and what is known will do.
	HeadTimeout = 5 * time.Second
	// StallTimeout is how long a registry may send nothing of a blob.
	StallTimeout = 15 * time.Second
	// awayFor is how long a registry that did not answer is not asked: a pull asks some dozen times.
	awayFor = 5 * time.Second
	// Patience is the longest that a registry may have itself be let alone for.
	Patience = 30 * time.Second
	// RequestsEach bounds the blobs that come at once from one registry, which bans who asks too much, and the
	// questions at once to it.
	RequestsEach = 8
	// ManifestMax bounds a manifest, in bytes: what registries agree on.
	ManifestMax = 4 << 20
	// headersMax bounds the headers of an answer, in bytes: challenges are kept of thousands of repositories.
	headersMax = 16 << 10
)

// Accepted are the manifests that a registry may answer with.
const Accepted = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/json;q=0.5, */*;q=0.1"

// Refusal is a registry's no to who shows that credential, or none.
type Refusal struct{ Challenge string }

// Error implements error.
func (r *Refusal) Error() string {
	return "the registry does not let this be read with the credential that was shown"
}

// AwayError says that a registry can't be asked now.
type AwayError struct {
	why   error
	After time.Duration // that it asked for
	Mute  bool          // it does not even say so
}

// Error and Unwrap implement error.
func (e *AwayError) Error() string { return "the registry does not answer: " + e.why.Error() }
func (e *AwayError) Unwrap() error { return e.why }

// IsAway tells that a registry can't be asked now from what it says.
func IsAway(err error) bool { _, ok := errors.AsType[*AwayError](err); return ok }

// Upstream is a registry that blobs come from. Safe for concurrent use.
type Upstream struct {
	base   string // its URL
	public *http.Client
	bare   *http.Client        // which shows what the caller gives it
	gate   *semaphore.Weighted // of blobs
	heads  *semaphore.Weighted // of questions, which wait for no blob
	now    func() time.Time

	mu    sync.Mutex // guards what follows
	until time.Time  // it is not asked before
	away  AwayError  // and this is why
}

// NewUpstream says where a registry is: given, or where everybody knows it to be.
func NewUpstream(name, given string, now func() time.Time) *Upstream {
	base := given
	switch host, _, _ := strings.Cut(name, ":"); {
	case base != "":
	case name == "docker.io":
		base = "https://registry-1.docker.io"
	case host == "localhost" || net.ParseIP(host).IsLoopback():
		base = "http://" + name
	default:
		base = "https://" + name
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: tlsTimeout,
		ResponseHeaderTimeout: headerTimeout, MaxResponseHeaderBytes: headersMax, MaxIdleConnsPerHost: RequestsEach, IdleConnTimeout: time.Minute, DisableCompression: true, ForceAttemptHTTP2: true,
	}
	noted := noting{transport}
	return &Upstream{
		base: strings.TrimSuffix(base, "/"), bare: &http.Client{Transport: noted}, public: &http.Client{Transport: ociauth.NewStdTransport(ociauth.StdTransportParams{Transport: noted})},
		gate: semaphore.NewWeighted(RequestsEach), heads: semaphore.NewWeighted(RequestsEach), now: now,
	}
}

// noting keeps the challenge of a registry, which ociauth answers and drops.
type noting struct{ http.RoundTripper }

type challengeKey struct{}

// RoundTrip implements http.RoundTripper.
func (n noting) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := n.RoundTripper.RoundTrip(r)
	if kept, ok := r.Context().Value(challengeKey{}).(*string); ok && err == nil && answer.StatusCode == http.StatusUnauthorized && *kept == "" {
		*kept = answer.Header.Get("WWW-Authenticate")
	}
	return answer, err
}

// resting says why a registry is not asked now.
func (u *Upstream) resting() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now().Before(u.until) {
		return &AwayError{u.away.why, u.until.Sub(u.now()), u.away.Mute}
	}
	return nil
}

// lost notes that a registry does not answer, or wants to be let alone.
func (u *Upstream) lost(away AwayError) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	pause := awayFor
	if away.After > 0 {
		pause = min(away.After, Patience)
	}
	u.until, u.away = u.now().Add(pause), away
	return &away
}

// wish is something of a repository, from a byte on, for who shows a credential.
type wish struct {
	place      Place
	what       string
	credential string
	from       int64
}

// ask sends a request. The answer is one of success.
func (u *Upstream) ask(ctx context.Context, method string, w wish) (*http.Response, error) {
	if err := u.resting(); err != nil {
		return nil, err
	}
	challenge := ""
	ctx = context.WithValue(ctx, challengeKey{}, &challenge)
	ctx = ociauth.ContextWithRequestInfo(ctx, ociauth.RequestInfo{RequiredScope: ociauth.NewScope(ociauth.ResourceScope{
		ResourceType: ociauth.TypeRepository, Resource: w.place.Repo, Action: ociauth.ActionPull,
	})})
	r, err := http.NewRequestWithContext(ctx, method, u.base+"/v2/"+w.place.Repo+"/"+w.what, nil)
	if err != nil {
		return nil, err
	}
	client := u.public
	r.Header.Set("Accept", Accepted)
	if w.from > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", w.from))
	}
	if w.credential != "" {
		client = u.bare
		r.Header.Set("Authorization", w.credential)
	}
	answer, err := client.Do(r)
	if err != nil {
		var told ociregistry.HTTPError // of who gives out tokens
		switch {
		case ctx.Err() != nil && context.Cause(ctx) != context.DeadlineExceeded:
			return nil, context.Cause(ctx)
		case errors.As(err, &told) && told.StatusCode() < 500 && told.StatusCode() != http.StatusTooManyRequests:
			return nil, &Refusal{challenge}
		}
		dial, failed := errors.AsType[*net.OpError](err)
		if dns, unknown := errors.AsType[*net.DNSError](err); failed && dial.Op == "dial" || unknown && dns != nil || ctx.Err() != nil {
			return nil, u.lost(AwayError{why: err, Mute: true})
		}
		return nil, &AwayError{why: err}
	}
	if answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusPartialContent {
		return answer, nil
	}
	answer.Body.Close()
	return nil, u.sort(answer, w, challenge)
}

// sort says what an answer means that is none of success.
func (u *Upstream) sort(answer *http.Response, w wish, challenge string) error {
	err := fmt.Errorf("%s of %s: %s", w.what, w.place, answer.Status)
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return &Refusal{cmp.Or(challenge, answer.Header.Get("WWW-Authenticate"))}
	case code == http.StatusTooManyRequests || code >= 500:
		seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
		return u.lost(AwayError{why: err, After: time.Duration(seconds) * time.Second})
	}
	return fmt.Errorf("%w: %w", content.ErrNotFound, err)
}

// path is where a registry has something of a repository, by a digest or tag.
func path(manifest bool, ref string) string {
	if manifest {
		return "manifests/" + ref
	}
	return "blobs/" + ref
}

// Head asks what there is, in little time.
func (u *Upstream) Head(ctx context.Context, p Place, manifest bool, ref, credential string) (Item, error) {
	ctx, cancel := context.WithTimeout(ctx, HeadTimeout)
	defer cancel()
	if manifest && !IsDigest(ref) && !ociref.IsValidTag(ref) {
		return Item{}, fmt.Errorf("tag %.80q: %w", ref, content.ErrNotFound)
	}
	if err := u.heads.Acquire(ctx, 1); err != nil {
		return Item{}, &AwayError{why: fmt.Errorf("%d others are asked of it: %w", RequestsEach, err)}
	}
	defer u.heads.Release(1)
	answer, err := u.ask(ctx, http.MethodHead, wish{p, path(manifest, ref), credential, 0})
	if err != nil {
		return Item{}, err
	}
	answer.Body.Close()
	it := Item{Digest: digest.Digest(cmp.Or(answer.Header.Get("Docker-Content-Digest"), ref)), Size: answer.ContentLength, Manifest: manifest}
	it.Media, _, _ = strings.Cut(answer.Header.Get("Content-Type"), ";")
	switch {
	case CheckDigest(it.Digest) != nil, IsDigest(ref) && string(it.Digest) != ref, it.Size < 0:
		err = fmt.Errorf("%s of %s: %w: the registry says digest %.80q and %d bytes", ref, p, content.ErrCorrupt, it.Digest, it.Size)
	case manifest && it.Size > ManifestMax:
		err = fmt.Errorf("%s of %s: %w: a manifest of %d bytes", ref, p, content.ErrInvalid, it.Size)
	}
	return it, err
}

// Rest is where what a blob lacks goes, and the byte from which on it does.
type Rest struct {
	io.Writer
	From int64
}

// Fetch appends to a blob what it lacks. What ends before is an error, and may be gone on with.
func (u *Upstream) Fetch(ctx context.Context, p Place, it Item, credential string, x Rest) error {
	if err := u.gate.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.gate.Release(1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	from := x.From
	answer, err := u.ask(ctx, http.MethodGet, wish{p, path(it.Manifest, it.Digest.String()), credential, from})
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	stall := time.AfterFunc(StallTimeout, func() { cancel(errors.New("the registry has stopped to send")) })
	defer stall.Stop()
	body := io.Reader(watched{answer.Body, stall})
	if answer.StatusCode == http.StatusOK && from > 0 { // it knows no ranges
		if _, err := io.CopyN(io.Discard, body, from); err != nil {
			return &AwayError{why: err}
		}
	}
	n, err := io.CopyBuffer(x.Writer, io.LimitReader(body, it.Size-from+1), make([]byte, 256<<10))
	switch {
	case errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNoSpace):
		return err
	case err != nil || n < it.Size-from:
		return &AwayError{why: fmt.Errorf("blob %s of %s: it ended at %d of %d bytes: %w", it.Digest, p, from+n, it.Size, cmp.Or(context.Cause(ctx), err, io.ErrUnexpectedEOF))}
	}
	return nil
}

// watched puts off the end of who has sent something.
type watched struct {
	io.Reader
	stall *time.Timer
}

// Read implements io.Reader.
func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.stall.Reset(StallTimeout)
	}
	return n, err
}
