package api

import (
	"cmp"
	"context"
	"encoding"
	"fmt"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/origin/content"
)

// Page is the input of routes that list.
type Page struct {
	Limit int    `query:"limit" minimum:"1" doc:"at most so many; all when not given"`
	After string `query:"after" maxLength:"1024" doc:"what comes behind this one, which need not be there any more; with sort what the Link to the next page says"`
	Choice
}

// Choice says which of a list, and in which order.
type Choice struct {
	Match string `query:"match" maxLength:"255" doc:"those alone that have this in their name or another of their texts, whatever the case"`
	Sort  string `query:"sort" maxLength:"64" doc:"by this member of theirs, the least first, or with - before it the greatest"`
}

// Asked is Page with what the client has already.
type Asked struct {
	Page
	IfNoneMatch
}

// Listed is one page of a list, Tagged as well.
type Listed[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"of all but the ages"`
	Link   string `header:"Link" doc:"the next page, as rel=next; absent on the last"`
	Total  string `header:"X-Total-Count" doc:"how many there are on all pages; absent where nobody has counted them"`
	Body   []T
}

// paged is a page of a list.
type paged[T any] struct {
	page        []T
	link, total string
}

// part cuts a page out of a list: pages go by key, in an order of the keys. A list that
// is wanted whole keeps its own.
func part[T any](in Page, list []T, key func(T) string, order func(a, b string) int) (paged[T], error) {
	page := slices.DeleteFunc(append([]T{}, list...), func(v T) bool { return !matches(in.Match, v) }) // an empty list is [], never null
	out := paged[T]{page, "", strconv.Itoa(len(page))}
	if in.Limit == 0 && in.After == "" && in.Sort == "" {
		return out, nil
	}
	by, down := strings.CutPrefix(in.Sort, "-")
	switch {
	case down:
		order = newestFirst
	case by != "":
		order = cmp.Compare[string]
	}
	type keyed struct { // each key is made once
		key string
		v   T
	}
	var all []keyed
	for _, v := range page {
		k := keyed{key(v), v}
		if by != "" {
			text, err := ordered(v, by)
			if err != nil {
				return out, err
			}
			k.key = text + sortEnd + k.key
		}
		if in.After == "" || order(k.key, in.After) > 0 {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b keyed) int { return order(a.key, b.key) })
	if in.Limit > 0 && len(all) > in.Limit {
		all = all[:in.Limit]
		out.link = in.kept(nextPage(in.Limit, all[in.Limit-1].key))
	}
	out.page = out.page[:0]
	for _, k := range all {
		out.page = append(out.page, k.v)
	}
	return out, nil
}

// sortEnd parts what a list is sorted by from the key, in what comes after a page.
const sortEnd = "\x00"

func nextPage(limit int, last string) string {
	next := url.Values{"limit": {strconv.Itoa(limit)}, "after": {last}}
	return "<?" + next.Encode() + `>; rel="next"`
}

// also keeps what else a list was asked for with in the link to its next page.
func also(link, name, value string) string {
	if link == "" || value == "" {
		return link
	}
	return strings.Replace(link, "<?", "<?"+url.Values{name: {value}}.Encode()+"&", 1)
}

func (c Choice) kept(link string) string {
	return also(also(link, "match", c.Match), "sort", c.Sort)
}

func listed[T any](in IfNoneMatch, p paged[T], err error) (*Listed[T], error) {
	timeless := make([]T, len(p.page))
	for i, v := range p.page {
		timeless[i] = ageless(v)
	}
	etag, status, failed := in.tag(timeless)
	return &Listed[T]{status, etag, p.link, p.total, p.page}, cmp.Or(err, failed)
}

func newestFirst(a, b string) int { return cmp.Compare(b, a) }

// lists registers a route that lists by name or ID.
func lists[T any](a huma.API, path, summary string, key func(T) string, list func(context.Context) ([]T, error)) {
	order := cmp.Compare[string]
	if path == operationsPath {
		order = newestFirst
	}
	route(a, "GET "+path, summary, func(ctx context.Context, in *Asked) (*Listed[T], error) {
		all, err := list(ctx)
		if err != nil {
			return nil, err
		}
		page, err := part(in.Page, all, key, order)
		return listed(in.IfNoneMatch, page, err)
	})
}

// matches reports whether a text is in one of those of v, a struct.
func matches(text string, v any) bool {
	if text == "" {
		return true
	}
	text = strings.ToLower(text)
	has := func(s string) bool { return strings.Contains(strings.ToLower(s), text) }
	of := reflect.ValueOf(v)
	for _, f := range reflect.VisibleFields(of.Type()) {
		if f.Anonymous || nameOf(f) == "" {
			continue
		}
		switch x := of.FieldByIndex(f.Index).Interface().(type) {
		case []string:
			if slices.ContainsFunc(x, has) {
				return true
			}
		case encoding.TextMarshaler:
			if b, err := x.MarshalText(); err == nil && has(string(b)) {
				return true
			}
		default:
			if s := reflect.ValueOf(x); s.IsValid() && s.Kind() == reflect.String && has(s.String()) {
				return true
			}
		}
	}
	return false
}

// nameOf is what a field is called in JSON; "" for one that is not there.
func nameOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return strings.TrimPrefix(name, "-")
}

// ordered is a text that sorts as a member of v, a struct, does.
func ordered(v any, by string) (string, error) {
	of := reflect.ValueOf(v)
	for _, f := range reflect.VisibleFields(of.Type()) {
		if f.Anonymous || nameOf(f) != by {
			continue
		}
		x := of.FieldByIndex(f.Index)
		switch of := x.Interface().(type) {
		case time.Time:
			return of.UTC().Format("2006-01-02T15:04:05.000000000"), nil
		case encoding.TextMarshaler:
			b, err := of.MarshalText()
			return string(b), err
		}
		switch {
		case x.Kind() == reflect.String:
			return strings.ReplaceAll(strings.ToLower(x.String()), sortEnd, ""), nil
		case x.Kind() == reflect.Bool:
			return strconv.FormatBool(x.Bool()), nil
		case x.CanInt():
			return fmt.Sprintf("%020d", uint64(x.Int())^1<<63), nil
		case x.CanUint():
			return fmt.Sprintf("%020d", x.Uint()), nil
		case x.CanFloat(): // none is below 0
			return fmt.Sprintf("%020d", math.Float64bits(x.Float())), nil
		}
	}
	return "", fmt.Errorf("sort %.40q: %w: it is no member that one could sort these by", by, content.ErrInvalid)
}
