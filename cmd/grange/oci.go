package main

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"cuelabs.dev/go/oci/ociregistry/ociref"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/oci"
)

// doorOfImages says where container images are served, and which.
func (c *nodeCmd) doorOfImages() (oci.Terms, error) {
	terms := oci.Terms{Address: c.OCI, Quota: int64(c.OCIQuota)}
	if c.OCI == "" {
		return terms, nil
	}
	if host, _, err := net.SplitHostPort(c.OCI); err != nil || !api.IsLoopback(host) {
		return terms, fmt.Errorf("%w: --oci %q: want HOST:PORT of loopback, as 127.0.0.1:5050: whoever reaches it reads what was pushed", ask.ErrUsage, c.OCI)
	}
	for _, text := range c.OCIUpstream {
		name, at, given := strings.Cut(text, "=")
		u, err := url.Parse(at)
		if !ociref.IsValidHost(name) || given && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
			return terms, fmt.Errorf("%w: --oci-upstream %q: want a registry as docker.io, or ghcr.io=https://HOST", ask.ErrUsage, text)
		}
		if terms.Upstreams == nil {
			terms.Upstreams = map[string]string{}
		}
		terms.Upstreams[name] = at
	}
	return terms, nil
}
