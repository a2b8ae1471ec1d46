package s3

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/buckettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, location string) *Bucket {
	t.Helper()
	l, err := ParseURL(location)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), Config{Location: l})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func start(t *testing.T) *buckettest.S3 {
	s := buckettest.StartS3(t)
	s.Setenv(t)
	return s
}

func TestAWholeBucketWithoutPrefix(t *testing.T) {
	b := open(t, start(t).URL(""))
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil || info.Key != "records/a" {
			t.Fatalf("%+v, %v", info, err)
		}
	}
}

// large is a body of which no byte is kept: each eight bytes are their offset.
type large int64

func (l large) Size() int64 { return int64(l) }

func (l large) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), int64(l)-off))
	var word [8]byte
	for i := range n {
		at := off + int64(i)
		binary.BigEndian.PutUint64(word[:], uint64(at)&^7)
		p[i] = word[at&7]
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func TestLargeObjectsGoInPartsWithinLittleMemory(t *testing.T) {
	const size, memory = singleMax + 3<<20 + 5, 24 << 20
	b := open(t, start(t).URL("large"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	info, err := b.Put(t.Context(), "packs/large", large(size), bucket.IfAbsent())
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > memory {
		t.Errorf("%d MiB were allocated, want %d at most", used>>20, memory>>20)
	}
	got := make([]byte, 1<<20)
	want := make([]byte, 1<<20)
	for _, off := range []int64{0, partSizeMin - 512<<10, size - 1<<20} { // one across two parts
		o, err := b.Get(t.Context(), "packs/large", bucket.Range{Offset: off, Length: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(o.Body, got); err != nil || o.Body.Close() != nil || o.Size != size || o.ETag != info.ETag {
			t.Fatalf("%+v, error %v", o.Info, err)
		}
		if _, _ = large(size).ReadAt(want, off); !bytes.Equal(got, want) {
			t.Fatalf("other bytes at %d", off)
		}
	}
	for name, cond := range map[string]bucket.Condition{"if-absent": bucket.IfAbsent(), "if-match": bucket.IfMatch(`"0123456789abcdef0123456789abcdef"`)} {
		if _, err := b.Put(t.Context(), "packs/large", large(size+1), cond); !errors.Is(err, bucket.ErrPrecondition) {
			t.Errorf("%s on a large object: %v, want ErrPrecondition", name, err)
		}
	}
	if _, err := b.Put(t.Context(), "packs/large", large(size+1), bucket.IfMatch(info.ETag)); err != nil {
		t.Errorf("if-match on a large object: %v", err)
	}
}

// between puts a proxy between the bucket and the store, which cut may keep from
// passing a reply on.
func between(t *testing.T, s *buckettest.S3, cut func(*http.Request) bool) *Bucket {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error {
			if cut(r.Request) {
				return errors.New("cut")
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	return open(t, strings.Replace(s.URL("lost"), s.Endpoint, server.URL, 1))
}

// TestALostReplyIsUnknown cuts the connection after the store has done the work.
func TestALostReplyIsUnknown(t *testing.T) {
	s := start(t)
	var lose atomic.Bool
	b := between(t, s, func(*http.Request) bool { return lose.Load() })
	stacked := bucket.Retry(b, bucket.RetryConfig{Wait: time.Millisecond})
	first, err := stacked.Put(t.Context(), "records/a", bucket.Bytes([]byte("1")), bucket.IfAbsent())
	if err != nil {
		t.Fatal(err)
	}
	for name, cond := range map[string]bucket.Condition{"records/b": bucket.IfAbsent(), "records/a": bucket.IfMatch(first.ETag)} {
		lose.Store(true)
		_, err := stacked.Put(t.Context(), name, bucket.Bytes([]byte("2")), cond)
		lose.Store(false)
		if !errors.Is(err, bucket.ErrUnknown) || errors.Is(err, bucket.ErrPrecondition) {
			t.Errorf("a lost reply to %s: %v, want ErrUnknown", name, err)
		}
		if got, _, err := bucket.ReadAll(t.Context(), stacked, name, 10); err != nil || string(got) != "2" {
			t.Errorf("%s holds %q, %v: the write was carried out", name, got, err)
		}
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct {
		location, key, secret string
		want                  error
		text                  string
	}{
		"no such bucket":  {strings.Replace(s.URL("p"), "s3://grange", "s3://missing", 1), s.AccessKey, s.SecretKey, content.ErrInvalid, "create it"},
		"a wrong secret":  {s.URL("p"), s.AccessKey, "wrong", content.ErrForbidden, "AWS_SECRET_ACCESS_KEY"},
		"an unknown key":  {s.URL("p"), "nobody", s.SecretKey, content.ErrForbidden, "AWS_ACCESS_KEY_ID"},
		"no credentials":  {s.URL("p"), "", "", content.ErrForbidden, "no credentials were found"},
		"nothing listens": {"s3://grange/p?endpoint=http://127.0.0.1:1&path-style=true", s.AccessKey, s.SecretKey, content.ErrUnavailable, "is the store running"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", c.key)
			t.Setenv("AWS_SECRET_ACCESS_KEY", c.secret)
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
			t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
			b := open(t, c.location)
			for op, err := range map[string]error{"get": second(b.Get(t.Context(), "records/a", bucket.Range{})), "probe": bucket.Probe(t.Context(), b)} {
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || errors.Is(err, bucket.ErrUnknown) {
					t.Errorf("%s: %v, want %v and %q", op, err, c.want, c.text)
				}
			}
		})
	}
}

// TestTheSDKPrintsNothing has it look for credentials where it is refused: the error says so.
func TestTheSDKPrintsNothing(t *testing.T) {
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer metadata.Close()
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.URL} {
		t.Setenv(name, value)
	}
	printed, err := os.Create(filepath.Join(t.TempDir(), "printed"))
	if err != nil {
		t.Fatal(err)
	}
	terminal := os.Stderr
	os.Stderr = printed
	defer func() { os.Stderr = terminal }()
	b := open(t, "s3://grange/p?endpoint=http://127.0.0.1:1&path-style=true")
	if _, err := b.Get(t.Context(), "records/a", bucket.Range{}); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("%v", err)
	}
	if text, err := os.ReadFile(printed.Name()); err != nil || len(text) > 0 {
		t.Errorf("%s, %v", text, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestAnswersAreClassified makes a store answer with each failure.
func TestAnswersAreClassified(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	var status int
	var code string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>m</Message></Error>")
	}))
	defer server.Close()
	b := open(t, "s3://b?endpoint="+server.URL+"&path-style=true")
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{403, "RequestTimeTooSkewed", content.ErrForbidden}, {403, "AccessDenied", content.ErrForbidden}, {404, "NoSuchBucket", content.ErrInvalid},
		{409, "ConditionalRequestConflict", bucket.ErrBusy}, {412, "PreconditionFailed", bucket.ErrPrecondition}, {503, "SlowDown", bucket.ErrSlowDown},
		{429, "TooManyRequests", bucket.ErrSlowDown}, {503, "SlowDownRead", bucket.ErrSlowDown}, {500, "InternalError", bucket.ErrUnknown}, {503, "ServiceUnavailable", bucket.ErrUnknown},
		{400, "AuthorizationHeaderMalformed", content.ErrInvalid}, {400, "EntityTooLarge", content.ErrInvalid}, {501, "NotImplemented", content.ErrReadOnly},
		{404, "NoSuchKey", bucket.ErrPrecondition}, {404, "SomethingElse", content.ErrInvalid},
	} {
		status, code = c.status, c.code
		_, err := b.Put(t.Context(), "a", bucket.Bytes([]byte("x")), bucket.IfMatch(`"e"`))
		if !errors.Is(err, c.want) || errors.Is(err, bucket.ErrUnknown) != (c.want == bucket.ErrUnknown) {
			t.Errorf("%d %s: %v, want %v", c.status, c.code, err, c.want)
		}
	}
}

// forgetful is a store that honours one of the two conditions.
func forgetful(honoured string) http.Handler {
	var mu sync.Mutex
	objects := map[string]string{} // key → content, which is its ETag too
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		old, exists := objects[r.URL.Path]
		absent, match := r.Header.Get("If-None-Match") != "", r.Header.Get("If-Match")
		switch {
		case r.Method == http.MethodDelete:
			delete(objects, r.URL.Path)
		case honoured == "If-None-Match" && absent && exists, honoured == "If-Match" && match != "" && match != old:
			w.WriteHeader(http.StatusPreconditionFailed)
		case r.Method == http.MethodPut:
			objects[r.URL.Path] = strconv.Quote(string(body))
			w.Header().Set("ETag", objects[r.URL.Path])
		}
		if r.Method == http.MethodDelete && len(objects) > 0 {
			panic("something else was written than what is deleted")
		}
	})
}

func TestAStoreThatIgnoresConditionsIsRefused(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	for honoured, ignored := range map[string]string{"If-None-Match": "if-match", "If-Match": "if-none-match", "": "if-none-match"} {
		server := httptest.NewServer(forgetful(honoured))
		err := bucket.Probe(t.Context(), open(t, "s3://b/p?endpoint="+server.URL+"&path-style=true"))
		server.Close()
		if !errors.Is(err, content.ErrReadOnly) || !strings.Contains(err.Error(), "ignores "+ignored) {
			t.Errorf("a store that ignores %s: %v, want ErrReadOnly", ignored, err)
		}
	}
}

func TestRequestsAreLoggedOnlyWhenVerbose(t *testing.T) {
	s := start(t)
	for _, verbose := range []bool{false, true} {
		var log bytes.Buffer
		l, err := ParseURL(s.URL("log"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := Open(t.Context(), Config{Location: l, Verbose: verbose, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if logged := strings.Contains(log.String(), "op=delete key=a"); logged != verbose || strings.Contains(log.String(), s.SecretKey) {
			t.Errorf("verbose %t: logged %q", verbose, log.String())
		}
	}
}

func TestURLs(t *testing.T) {
	for text, want := range map[string]Location{
		"s3://b":                                   {Bucket: "b"},
		"s3://b/p/q/?region=eu-west-1":             {Bucket: "b", Prefix: "p/q", Region: "eu-west-1"},
		"s3://b/p?endpoint=https://h:9000":         {Bucket: "b", Prefix: "p", Endpoint: "https://h:9000"},
		"s3://b?endpoint=http://h&path-style=true": {Bucket: "b", Endpoint: "http://h", PathStyle: true},
	} {
		if got, err := ParseURL(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "b", "http://b", "s3:///p", "s3://key:secret@b", "s3://b?endpoint=h:9000", "s3://b?path-style=perhaps", "s3://b?regoin=x", "s3://b/../c", "s3://b/p//q", "s3://b/p q"} {
		if l, err := ParseURL(text); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %+v, %v, want ErrInvalid", text, l, err)
		}
	}
}

// TestAStoreThatGoesAway kills the server under a bucket in use.
func TestAStoreThatGoesAway(t *testing.T) {
	s := start(t)
	b := open(t, s.URL("away"))
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("1")), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.Get(ctx, "records/a", bucket.Range{}); !errors.Is(err, content.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("get: %v, want ErrUnavailable, at once", err)
	}
	if _, err := b.Put(ctx, "records/b", bucket.Bytes([]byte("1")), bucket.IfAbsent()); !errors.Is(err, content.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("put: %v, want ErrUnavailable, at once", err)
	}
}
