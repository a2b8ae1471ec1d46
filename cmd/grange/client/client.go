// Package client asks a node over its API: at its socket, or at an address. It knows no
// routes but that of an operation's events; what is asked is for its callers to say.
package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/node/api"
)

// Config says which node is asked.
type Config struct {
	// Data is the data folder of the node whose socket is asked, and where the token and
	// the certificate for its address are looked for.
	Data string
	// Remote is HOST:PORT, a URL, or the path of a socket; "" is the socket in Data.
	Remote string
	// Token and Certificate, a file, are those for Remote; "" are those in Data.
	Token, Certificate string
}

// Client asks one node.
type Client struct {
	http  *http.Client
	base  string
	token string
}

// socketBase stands for the address of a node that is asked over its socket.
const socketBase = "http://node"

// New finds out how the node is asked; it asks nothing yet.
func New(cfg Config) (*Client, error) {
	target := cfg.Remote
	switch {
	case target == "":
		return ofSocket(filepath.Join(cfg.Data, api.SocketName)), nil
	case strings.HasPrefix(target, "/"), strings.HasPrefix(target, "unix:"):
		return ofSocket(strings.TrimPrefix(strings.TrimPrefix(target, "unix://"), "unix:")), nil
	case strings.HasPrefix(target, "http://"), strings.HasPrefix(target, "https://"):
		return cfg.at(strings.TrimSuffix(target, "/"))
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("GRANGE_API %q: want HOST:PORT, http://HOST:PORT, https://HOST:PORT or the path of a socket", target)
	}
	if api.IsLoopback(host) { // which the node serves without TLS
		return cfg.at("http://" + target)
	}
	return cfg.at("https://" + target)
}

func ofSocket(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("this user may not ask the node at %s (%w): be the user that it runs as, or set GRANGE_API and GRANGE_TOKEN", path, err)
		}
		if err != nil {
			if why, ok := errors.AsType[*net.OpError](err); ok { // it names the path again
				err = why.Err
			}
			return nil, fmt.Errorf("no node answers at %s (%w); start one with `grange node`, or give --data", path, err)
		}
		return conn, nil
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: socketBase}
}

// at trusts the system's authorities, and the node's own certificate.
func (cfg Config) at(base string) (*Client, error) {
	token := cfg.Token
	if token == "" {
		b, err := os.ReadFile(filepath.Join(cfg.Data, api.TokenName))
		if err != nil {
			return nil, fmt.Errorf("set GRANGE_TOKEN to the token of the node at %s: %w", base, err)
		}
		token = strings.TrimSpace(string(b))
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	path := cfg.Certificate
	if own := filepath.Join(cfg.Data, api.CertificateName); path == "" {
		if _, err := os.Stat(own); err == nil {
			path = own
		}
	}
	if path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("GRANGE_CERT: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("GRANGE_CERT %s: no certificate in it", path)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	}
	return &Client{http: &http.Client{Transport: tr}, base: base, token: token}, nil
}

// Problem is a problem document that the node answered.
type Problem struct{ api.Problem }

func (e *Problem) Error() string {
	text := cmp.Or(e.Detail, fmt.Sprintf("the node answered %d %s", e.Status, e.Title))
	for _, d := range e.Errors {
		text += fmt.Sprintf("; %s: %s", d.Location, d.Message)
	}
	return text
}

// Ask sends in as JSON and reads the answer into out; either may be nil. What the node
// refuses is a *Problem.
func (c *Client) Ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if raw, ok := out.(*json.RawMessage); ok {
		*raw, err = io.ReadAll(resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// listAtOnce is how many names are asked for at once.
const listAtOnce = 1000

// Pages asks for a list page by page, and returns it whole. path may have a query.
func (c *Client) Pages(ctx context.Context, path string) (json.RawMessage, error) {
	at, err := url.Parse(path)
	if err != nil {
		return nil, err
	}
	query := at.Query()
	query.Set("limit", strconv.Itoa(listAtOnce))
	at.RawQuery = query.Encode()
	for all := []json.RawMessage{}; ; {
		resp, err := c.send(ctx, "GET", at.String(), nil)
		if err != nil {
			return nil, err
		}
		var page []json.RawMessage
		err = errors.Join(json.NewDecoder(resp.Body).Decode(&page), resp.Body.Close())
		if err != nil {
			return nil, fmt.Errorf("the node's answer: %w", err)
		}
		all = append(all, page...)
		link := resp.Header.Get("Link")
		if link == "" || len(page) == 0 {
			return json.Marshal(all)
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		if at, err = at.Parse(next); err != nil {
			return nil, fmt.Errorf("the node's answer: %w", err)
		}
	}
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var inner interface{ Unwrap() error } // url.Error repeats the method and a made-up address
		if errors.As(err, &inner) && ctx.Err() == nil {
			err = inner.Unwrap()
		}
		if c.base != socketBase {
			err = fmt.Errorf("no node answers at %s, as GRANGE_API says: %w", c.base, err)
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, fmt.Errorf("GRANGE_TOKEN is not the token of the node at %s, which is in its data folder, in %s", c.base, api.TokenName)
	}
	var problem Problem
	problem.Status, problem.Title = resp.StatusCode, http.StatusText(resp.StatusCode)
	if b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err == nil {
		json.Unmarshal(b, &problem) // a body that is no problem document leaves the status
	}
	return nil, &problem
}

// Copy writes what is at a path as it comes, until it ends or ctx does.
func (c *Client) Copy(ctx context.Context, w io.Writer, path string) error {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// Events calls each with every state of an operation until it ends.
func (c *Client) Events(ctx context.Context, id string, each func(api.Operation)) error {
	resp, err := c.send(ctx, http.MethodGet, "/api/operations/"+id+"/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var op api.Operation
		if err := json.Unmarshal([]byte(data), &op); err != nil {
			return fmt.Errorf("events of operation %s: %w", id, err)
		}
		each(op)
	}
	return lines.Err()
}
