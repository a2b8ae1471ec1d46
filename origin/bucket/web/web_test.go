package web

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h http.Handler) *Bucket {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	b, err := Open(server.URL + "/prefix/")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWritesAndListsAreRefused(t *testing.T) {
	b := serve(t, http.NotFoundHandler())
	if err := bucket.Probe(t.Context(), b); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("probe: %v, want ErrReadOnly", err)
	}
	if err := b.Delete(t.Context(), "a"); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("delete: %v, want ErrReadOnly", err)
	}
	for _, err := range b.List(t.Context(), "", "") {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("list: %v, want ErrUnsupported", err)
		}
	}
}

func TestAnswersAreChecked(t *testing.T) {
	answer := func(status int, headers, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for line := range strings.Lines(headers) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"absent":               {answer(404, "", ""), content.ErrNotFound},
		"gone":                 {answer(410, "", ""), content.ErrNotFound},
		"refused":              {answer(403, "", ""), content.ErrForbidden},
		"busy":                 {answer(429, "", ""), bucket.ErrSlowDown},
		"broken":               {answer(502, "", ""), content.ErrUnavailable},
		"ranges ignored":       {answer(200, "", "0123456789"), errors.ErrUnsupported},
		"outside":              {answer(416, "", ""), content.ErrInvalid},
		"no content range":     {answer(206, "", "45"), errors.ErrUnsupported},
		"a bad content range":  {answer(206, "Content-Range: bytes 4-x/10", "45"), content.ErrUnavailable},
		"another range":        {answer(206, "Content-Range: bytes 3-4/10", "34"), content.ErrUnavailable},
		"a shorter range":      {answer(206, "Content-Range: bytes 4-4/10", "4"), content.ErrUnavailable},
		"a range of unknown":   {answer(206, "Content-Range: bytes 4-5/*", "45"), content.ErrUnavailable},
		"less than it says":    {answer(206, "Content-Range: bytes 4-5/10", "4"), content.ErrUnavailable},
		"a connection cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, content.ErrUnavailable},
		"as it should be":      {answer(206, "Content-Range: bytes 4-5/10", "45"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := serve(t, c.handler).Get(t.Context(), "a", bucket.Range{Offset: 4, Length: 2})
			if err == nil {
				_, err = io.ReadAll(o.Body)
				err = errors.Join(err, o.Body.Close())
			}
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestURLs(t *testing.T) {
	for _, root := range []string{"", "host/x", "ftp://host/x", "https:///x", "https://host/x?y=1", "https://host/x#y"} {
		if _, err := Open(root); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", root, err)
		}
	}
}
