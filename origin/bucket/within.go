package bucket

import (
	"net/url"
	"path"
	"strings"
)

// Within reports whether one store lies in another, or is the same, by their URLs.
func Within(inner, outer string) bool {
	in, err := url.Parse(inner)
	out, failed := url.Parse(outer)
	return err == nil && failed == nil && in.Scheme == out.Scheme && in.Host == out.Host && in.Query().Get("endpoint") == out.Query().Get("endpoint") &&
		strings.HasPrefix(folder(in.Path), folder(out.Path))
}

// folder is a path as all begin that lie in it.
func folder(dir string) string { return strings.TrimSuffix(path.Clean("/"+dir), "/") + "/" }
