package s3

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// Location says where a bucket is.
type Location struct {
	Bucket string
	// Prefix of all keys, without slashes at its ends; "" for none.
	Prefix string
	// Endpoint of a store that is not AWS.
	Endpoint string
	Region   string
	// PathStyle puts the bucket into the path instead of the host name.
	PathStyle bool
}

// ParseURL reads s3://BUCKET/PREFIX?endpoint=…&region=…&path-style=true. Unknown
// settings are ErrInvalid.
func ParseURL(text string) (Location, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil {
		return Location{}, fmt.Errorf("origin %q: %w: want s3://BUCKET/PREFIX?endpoint=…&region=…; credentials come from the AWS environment and files", text, content.ErrInvalid)
	}
	l := Location{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	if l.Prefix != "" {
		if err := bucket.CheckKey(l.Prefix); err != nil {
			return Location{}, fmt.Errorf("origin %q: prefix: %w", text, err)
		}
	}
	for name, values := range u.Query() {
		value := values[len(values)-1]
		switch name {
		case "endpoint":
			e, err := url.Parse(value)
			if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" {
				return Location{}, fmt.Errorf("origin %q: endpoint %q: %w: want http://HOST:PORT or https://HOST", text, value, content.ErrInvalid)
			}
			l.Endpoint = value
		case "region":
			l.Region = value
		case "path-style":
			if l.PathStyle, err = strconv.ParseBool(value); err != nil {
				return Location{}, fmt.Errorf("origin %q: path-style %q: %w: want true or false", text, value, content.ErrInvalid)
			}
		default:
			return Location{}, fmt.Errorf("origin %q: %w: unknown setting %q; want endpoint, region or path-style", text, content.ErrInvalid, name)
		}
	}
	return l, nil
}
