package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// storeFindings asks the origin itself, with the credentials of this user. Where a node runs,
// which says more, and may have other credentials, alone what the store does to its objects.
func (c Settings) storeFindings(ctx context.Context, alone bool) []Finding {
	if c.Origin == "" {
		if !alone {
			return nil
		}
		return []Finding{Note.Of("store", "no --origin is set, and no node says one")}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	b, err := c.Open(ctx, c.Origin)
	if err == nil {
		_, _, err = bucket.ReadAll(ctx, b, content.KeyMesh, 1<<20)
	}
	store := Good.Of("store", "holds a mesh")
	switch {
	case errors.Is(err, content.ErrNotFound):
		store.Text, err = "answers, and holds no mesh yet", nil
	case err != nil && !alone:
		return nil
	case errors.Is(err, content.ErrForbidden):
		return []Finding{Bad.Of("credentials", err.Error()).By("%s", MendStore(err.Error()))}
	case err != nil:
		return []Finding{Bad.Of("store", err.Error()).By("%s", MendStore(err.Error()))}
	}
	var out []Finding
	if alone {
		out = []Finding{Good.Of("credentials", "the store takes them"), store}
	}
	if in, ok := b.(*s3.Bucket); ok {
		if rule, err := in.Expiring(ctx); err == nil && rule != "" {
			out = append(out, Bad.Of("lifecycle", "the bucket's rule "+rule+": what is old there is what is in use, and is lost").By("aws s3api get-bucket-lifecycle-configuration --bucket NAME  # and put back all rules but that one, by put-bucket-lifecycle-configuration"))
		}
	}
	return out
}

// MendStore is what to do about what a store has answered, by the words of origin/bucket/s3.
func MendStore(text string) string {
	for _, m := range [][2]string{
		{"no credentials were found", "printf 'AWS_ACCESS_KEY_ID=%s\\nAWS_SECRET_ACCESS_KEY=%s\\n' ID SECRET >> /etc/grange/environment && systemctl restart grange  # which the unit of the packages reads; in a shell, export both"},
		{"clock is not the store's", setClock},
		{"SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY in /etc/grange/environment, then systemctl restart grange"},
		{"credentials are wrong", "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in /etc/grange/environment, then systemctl restart grange"},
		{"credentials do not allow it", "grant that key s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload, on the bucket and on what is in it"},
		{"there is no bucket", "aws s3 mb s3://NAME --endpoint-url URL  # or correct the bucket in --origin, with path-style=true for a store that wants it in the path"},
		{"in another region", "aws s3api get-bucket-location --bucket NAME  # and give --origin that region=…"},
		{"path-style=true", "give --origin path-style=true: 's3://BUCKET/PREFIX?endpoint=URL&path-style=true'"},
		{"no host is called", "correct endpoint= and region= in --origin; getent hosts NAME says which names are known"},
		{"nothing answers there", "curl -v ENDPOINT  # start the store, or correct endpoint= in --origin"},
		{"is not trusted here", "export AWS_CA_BUNDLE=/path/of/its/authorities.pem, in /etc/grange/environment for the node"},
	} {
		if strings.Contains(text, m[0]) {
			return m[1]
		}
	}
	return "look at --origin, and whether this host reaches the store: curl -v ENDPOINT"
}

// namesFinding looks up the names of hosts that the settings have.
func (c Settings) namesFinding(ctx context.Context) []Finding {
	hosts := map[string]bool{}
	for _, text := range c.FarmJoin {
		if host, _, err := net.SplitHostPort(text); err == nil {
			hosts[host] = true
		}
	}
	for _, text := range c.Bootstrap {
		if m, err := multiaddr.NewMultiaddr(text); err == nil {
			for _, p := range m {
				if strings.HasPrefix(p.Protocol().Name, "dns") {
					hosts[p.Value()] = true
				}
			}
		}
	}
	endpoint := c.Origin
	if l, err := s3.ParseURL(c.Origin); err == nil {
		endpoint = l.Endpoint
	}
	if u, err := url.Parse(endpoint); err == nil && u.Hostname() != "" {
		hosts[u.Hostname()] = true
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var unknown []string
	for host := range hosts {
		if _, err := net.DefaultResolver.LookupHost(ctx, host); err != nil && net.ParseIP(host) == nil {
			unknown = append(unknown, host)
		}
	}
	if slices.Sort(unknown); len(unknown) > 0 {
		return []Finding{Bad.Of("names", "no host is called "+strings.Join(unknown, ", ")).By("getent hosts %s  # correct the name, or add it to the DNS or to /etc/hosts", unknown[0])}
	}
	return nil
}

// tokenFinding looks at what a newcomer is to join with. Whether it was used already its admin
// alone knows.
func (c Settings) tokenFinding(ctx context.Context) []Finding {
	if membership.In(c.Data) || c.Token == "" && c.TokenErr == nil {
		return nil
	}
	const mend = "(umask 077; grange token create --role node > token)  # on an admin; then bring the file to where --join says"
	t, err := trust.ParseToken(c.Token, time.Now())
	if err = cmp.Or(c.TokenErr, err); err != nil {
		return []Finding{Bad.Of("join", err.Error()).By(mend)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var tried []string
	for _, text := range t.Bootstrap {
		m, err := multiaddr.NewMultiaddr(text)
		if err != nil {
			continue
		}
		network, address, err := manet.DialArgs(m)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			continue
		}
		if err := c.answers(ctx, network, address); err == nil {
			return []Finding{Good.Of("join", fmt.Sprintf("the token is good until %s, as far as can be seen here, and %s answers", time.Unix(t.Expires, 0).Format(time.DateTime), address))}
		}
		tried = append(tried, address)
	}
	if len(tried) == 0 {
		return nil
	}
	return []Finding{Bad.Of("join", "none of the members that the token names answers: "+strings.Join(tried, ", ")+"; the admin that made it has to run when it is redeemed").By("systemctl start grange  # there; and " + LetPass)}
}
