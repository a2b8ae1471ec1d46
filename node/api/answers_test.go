package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// TestPages: pages in a row are the list, whatever their length and whatever leaves it
// between two of them.
func TestPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfDistinct(rapid.StringMatching(`[a-z]{1,3}`), rapid.ID[string]).Draw(t, "list")
		newest := rapid.Bool().Draw(t, "newest first")
		want, order := slices.Sorted(slices.Values(list)), cmp.Compare[string]
		if newest {
			slices.Reverse(want)
			order = newestFirst
		}
		whole, err := part(Page{}, list, func(s string) string { return s }, order)
		if !slices.Equal(whole.page, list) || whole.page == nil || whole.link != "" || err != nil {
			t.Fatalf("the whole list: %+v, %v", whole, err)
		}
		in := Page{Limit: rapid.IntRange(1, 5).Draw(t, "limit")}
		for {
			cut, err := part(in, list, func(s string) string { return s }, order)
			page, link := cut.page, cut.link
			if err != nil || cut.total != strconv.Itoa(len(list)) {
				t.Fatalf("%s of %d, %v", cut.total, len(list), err)
			}
			if len(page) > in.Limit || !slices.Equal(page, want[:len(page)]) {
				t.Fatalf("behind %q: %q, want the first of %q", in.After, page, want)
			}
			want = want[len(page):]
			if link == "" {
				break
			}
			ref, err := url.Parse(strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`))
			if err != nil || ref.Query().Get("limit") != fmt.Sprint(in.Limit) {
				t.Fatalf("link %q: %v", link, err)
			}
			in.After = ref.Query().Get("after")
			if rapid.Bool().Draw(t, "the last one leaves") {
				list = slices.DeleteFunc(list, func(s string) bool { return s == in.After })
			}
		}
		if len(want) > 0 {
			t.Fatalf("without %q", want)
		}
	})
}

// TestChosenPages: pages in a row have those that match, in the order of a member, whatever that is.
func TestChosenPages(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	scope := content.Farm("lyon")
	list := []images.Image{{Name: "a", Size: 9, Source: "/x.RAW"}, {Name: "b", Size: 10, Signed: at, Scope: scope}, {Name: "c", Size: 9, Confirmed: true, Age: 0.5}, {Name: "d", Stored: 1 << 63, Source: "y.raw"}}
	for _, x := range []struct{ match, sort, want string }{
		{"", "size", "d a c b"}, {"", "-size", "b c a d"}, {"", "-signed_at", "b d c a"}, {"", "confirmed", "a b d c"}, {"", "stored", "a b c d"}, {"", "-stored", "d c b a"}, {"", "-age_seconds", "c d b a"},
		{".raw", "", "a d"}, {"LYON", "-name", "b"}, {"nothing", "size", ""}, {"", "-scope", "b d c a"},
	} {
		in, got := Page{Limit: 1, Choice: Choice{x.match, x.sort}}, []string{}
		for {
			p, err := part(in, list, func(i images.Image) string { return i.Name }, cmp.Compare[string])
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range p.page {
				got = append(got, i.Name)
			}
			if p.link == "" {
				break
			}
			next, err := url.Parse(strings.TrimSuffix(strings.TrimPrefix(p.link, "<"), `>; rel="next"`))
			if err != nil || next.Query().Get("match") != x.match || next.Query().Get("sort") != x.sort {
				t.Fatalf("%s: %v", p.link, err)
			}
			in.After = next.Query().Get("after")
		}
		if strings.Join(got, " ") != x.want {
			t.Errorf("%+v: %v", x, got)
		}
	}
	if _, err := part(Page{Choice: Choice{Sort: "bytes"}}, list, func(i images.Image) string { return i.Name }, cmp.Compare[string]); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("by what has parts: %v", err)
	}
}

// TestETags: what a client has is not sent again, unless more than its age has changed.
func TestETags(t *testing.T) {
	v := images.Image{Name: "debian", Version: 3, Age: 1}
	first, err := tagged(IfNoneMatch{}, v, nil)
	if err != nil || first.Status != http.StatusOK || !regexp.MustCompile(`^W/"[0-9a-f]+"$`).MatchString(first.ETag) {
		t.Fatalf("%+v, %v", first, err)
	}
	newer := v
	newer.Version++
	older := v
	older.Age = 60
	for _, x := range []struct {
		have string
		of   images.Image
		want int
	}{
		{first.ETag, v, http.StatusNotModified},
		{first.ETag, older, http.StatusNotModified},
		{`"a", ` + strings.TrimPrefix(first.ETag, "W/"), older, http.StatusNotModified},
		{"*", newer, http.StatusNotModified},
		{first.ETag, newer, http.StatusOK},
		{`"a"`, v, http.StatusOK},
	} {
		if got, err := tagged(IfNoneMatch{x.have}, x.of, nil); err != nil || got.Status != x.want || got.ETag == "" {
			t.Errorf("%s of %+v: %+v, %v, want %d", x.have, x.of, got, err, x.want)
		}
	}
}

// TestProblems: each kind of failure has its status, and of a conflict its word.
func TestProblems(t *testing.T) {
	for err, want := range map[error]string{
		content.ErrInvalid: "400 bad_request", content.ErrNotFound: "404 not_found", content.ErrForbidden: "403 forbidden",
		content.ErrUnavailable: "503 service_unavailable", content.ErrNoSpace: "507 insufficient_storage", syscall.ENOSPC: "507 insufficient_storage",
		content.ErrExists: "409 exists", content.ErrFenced: "409 fenced", content.ErrConflict: "409 conflict",
		content.InUse: "409 in_use", content.Held: "409 held", content.Differs: "409 differs", content.Running: "409 running",
		errors.ErrUnsupported: "422 unprocessable_entity",
	} {
		var p *Problem
		got := problem(fmt.Errorf("volume %q: %w; do that", "v", err))
		if !errors.As(got, &p) || fmt.Sprintf("%d %s", p.Status, p.Code) != want || !strings.HasSuffix(p.Detail, "do that") {
			t.Errorf("%v: %+v, want %s", err, got, want)
		}
	}
}

// TestConflictOverAVolume says what whoever wants it has to know to decide.
func TestConflictOverAVolume(t *testing.T) {
	at := time.Date(2026, 11, 29, 5, 0, 0, 0, time.UTC)
	for held, want := range map[*terms.HeldError]string{
		{Holder: "a1", Policy: "farm:2", FoldedAt: at, Text: "move it"}: `"status":409,"detail":"volume \"web\": conflict: move it","code":"held","holder":"a1","policy":"farm:2","folded_at":"2026-11-29T05:00:00Z"}`,
		{Holder: "a1", Policy: "local"}:                                 `"code":"held","holder":"a1","policy":"local"}`,
	} {
		b, err := json.Marshal(problem(fmt.Errorf("volume %q: %w", "web", held)))
		if err != nil || !strings.HasSuffix(string(b), want) {
			t.Errorf("%s, %v, want %s", b, err, want)
		}
	}
}

// TestLinksKeepTheQuestion: the next page is of the same list.
func TestLinksKeepTheQuestion(t *testing.T) {
	if got, want := also(also(nextPage(2, "b c"), "all", "true"), "to", ""), `<?all=true&after=b+c&limit=2>; rel="next"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := also("", "all", "true"); got != "" {
		t.Errorf("of the last page: %s", got)
	}
}

// request asks a handler as a host outside does.
func request(h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestRefusals: whatever is wrong with a request, a problem says it.
func TestRefusals(t *testing.T) {
	s := New(Config{Node: &node.Node{Operations: operations.New(nil, nil)}})
	s.token = testToken
	h := s.guard(unrouted(s.mux), false)
	with := "Bearer " + testToken
	for _, x := range []struct {
		method, path, token string
		want                int
		allow               string
	}{
		{"GET", "/api/nothing", with, 404, ""},
		{"GET", "/nothing", with, 404, ""},
		{"PATCH", "/api/operations/x", with, 405, "DELETE, GET, HEAD"},
		{"POST", "/ipfs/x", with, 405, "GET, HEAD, OPTIONS"},
		{"GET", "/api/operations/x", with, 404, ""},
		{"GET", "/api/operations/x/events", with, 404, ""},
		{"DELETE", "/api/operations/x", with, 404, ""},
		{"GET", "/api/operations?limit=0", with, 422, ""},
		{"GET", "/api/operations", "", 401, ""},
		{"GET", "/api/operations", "Bearer false", 401, ""},
		{"GET", "/api/resolve/x", "Bearer false", 401, ""},
		{"GET", "/healthz", "Basic eDp5", 401, ""},
		{"GET", "/ipfs/x?format=raw", "", 400, ""},
		{"GET", "/api/volumes", with, 422, ""}, // of a node that is run as a seed
		{"PUT", "/api/volumes/x", with, 422, ""},
		{"GET", "/ipfs/x", "", 406, ""},
	} {
		var header []string
		if x.token != "" {
			header = []string{"Authorization", x.token}
		}
		w := request(h, x.method, x.path, header...)
		var p Problem
		err := json.Unmarshal(w.Body.Bytes(), &p)
		if w.Code != x.want || err != nil || p.Status != x.want || p.Code == "" || p.Detail == "" ||
			w.Header().Get("Content-Type") != "application/problem+json" || w.Header().Get("Allow") != x.allow {
			t.Errorf("%s %s: %d %v %s, want %d", x.method, x.path, w.Code, w.Header(), w.Body, x.want)
		}
	}
}

// TestPagesOfOtherOrigins: they see what is public, as nobody in particular, and no more.
func TestPagesOfOtherOrigins(t *testing.T) {
	names, commit := newNames(t)
	commit("open", content.Public(), false)
	commit("mesh", content.Mesh(), false)
	s := New(Config{Node: &node.Node{Names: names, Operations: operations.New(nil, nil)}})
	s.token = testToken
	h := s.guard(unrouted(s.mux), false)
	for _, x := range []struct {
		method, path string
		want         int
		shown        bool
	}{
		{"GET", "/api/resolve/open", 200, true},
		{"OPTIONS", "/api/resolve/open", 204, true},
		{"OPTIONS", "/ipfs/bafkqabtimvwgy3yk", 204, true},
		{"GET", "/ipfs/bafkqabtimvwgy3yk?format=raw", 200, true},
		{"GET", "/api/resolve/mesh", 404, true},
		{"GET", "/api/operations", 403, false},
		{"DELETE", "/api/operations/x", 403, false},
	} {
		w := request(h, x.method, x.path, "Origin", "https://elsewhere.example", "Authorization", "Bearer "+testToken)
		if shown := w.Header().Get("Access-Control-Allow-Origin") == "*"; w.Code != x.want || shown != x.shown {
			t.Errorf("%s %s: %d, shown to pages: %t", x.method, x.path, w.Code, shown)
		}
	}
	if w := request(h, "GET", "/api/resolve/mesh", "Authorization", "Bearer "+testToken); w.Code != http.StatusOK || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("to the operator: %d %v", w.Code, w.Header())
	}
}
