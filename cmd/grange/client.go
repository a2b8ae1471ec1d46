package main

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

	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/node/api"
)

// client asks a node: that of the data folder on the command line, over its socket,
// else GRANGE_API's, with GRANGE_TOKEN, else that of the data folder set otherwise.
type client struct {
	http  *http.Client
	base  string
	token string
}

// socketBase stands for the address of a node that is asked over its socket.
const socketBase = "http://node"

// remote is the address of a node that need not be on this host, or "".
func (c *cli) remote() string {
	if c.dataGiven {
		return ""
	}
	return os.Getenv("GRANGE_API")
}

func (c *cli) client() (*client, error) {
	target := c.remote()
	switch {
	case target == "":
		return socketClient(filepath.Join(c.Data, api.SocketName)), nil
	case strings.HasPrefix(target, "/"), strings.HasPrefix(target, "unix:"):
		return socketClient(strings.TrimPrefix(strings.TrimPrefix(target, "unix://"), "unix:")), nil
	case strings.HasPrefix(target, "http://"), strings.HasPrefix(target, "https://"):
		return c.remoteClient(strings.TrimSuffix(target, "/"))
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("GRANGE_API %q: want HOST:PORT, http://HOST:PORT, https://HOST:PORT or the path of a socket", target)
	}
	if api.IsLoopback(host) { // which the node serves without TLS
		return c.remoteClient("http://" + target)
	}
	return c.remoteClient("https://" + target)
}

func socketClient(path string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("this user may not ask the node at %s (%w): be the user that it runs as, or set GRANGE_API and GRANGE_TOKEN", path, err)
		}
		if err != nil {
			var why *net.OpError // it names the path again
			if errors.As(err, &why) {
				err = why.Err
			}
			return nil, fmt.Errorf("no node answers at %s (%w); start one with `grange node`, or give --data", path, err)
		}
		return conn, nil
	}
	return &client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: socketBase}
}

// remoteClient trusts the system's authorities, and GRANGE_CERT, a node's api.crt.
func (c *cli) remoteClient(base string) (*client, error) {
	token := os.Getenv("GRANGE_TOKEN")
	if token == "" {
		b, err := os.ReadFile(filepath.Join(c.Data, api.TokenName))
		if err != nil {
			return nil, fmt.Errorf("set GRANGE_TOKEN to the token of the node at %s: %w", base, err)
		}
		token = strings.TrimSpace(string(b))
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	path := os.Getenv("GRANGE_CERT")
	if own := filepath.Join(c.Data, api.CertificateName); path == "" && fileExists(own) {
		path = own
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
	return &client{http: &http.Client{Transport: tr}, base: base, token: token}, nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// problemError is a problem document that the node answered.
type problemError struct{ api.Problem }

func (e *problemError) Error() string {
	text := cmp.Or(e.Detail, fmt.Sprintf("the node answered %d %s", e.Status, e.Title))
	for _, d := range e.Errors {
		text += fmt.Sprintf("; %s: %s", d.Location, d.Message)
	}
	return text
}

// ask sends in as JSON and reads the answer into out; either may be nil.
func (c *cli) ask(ctx context.Context, method, path string, in, out any) error {
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

// pages asks for a list by name, page by page, and returns it whole.
func (c *cli) pages(ctx context.Context, path string) (json.RawMessage, error) {
	all := []json.RawMessage{}
	for query := (url.Values{"limit": {strconv.Itoa(listAtOnce)}}); ; {
		resp, err := c.send(ctx, "GET", path+"?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		var page []json.RawMessage
		err = errors.Join(json.NewDecoder(resp.Body).Decode(&page), resp.Body.Close())
		if err != nil {
			return nil, fmt.Errorf("the node's answer: %w", err)
		}
		all = append(all, page...)
		var last struct{ Name string }
		if resp.Header.Get("Link") == "" || len(page) == 0 {
			return json.Marshal(all)
		}
		if err := json.Unmarshal(page[len(page)-1], &last); err != nil {
			return nil, fmt.Errorf("the node's answer: %w", err)
		}
		query.Set("after", last.Name)
	}
}

func (c *cli) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	to, err := c.client()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, to.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if to.token != "" {
		req.Header.Set("Authorization", "Bearer "+to.token)
	}
	resp, err := to.http.Do(req)
	if err != nil {
		var inner interface{ Unwrap() error } // url.Error repeats the method and a made-up address
		if errors.As(err, &inner) && ctx.Err() == nil {
			err = inner.Unwrap()
		}
		if to.base != socketBase {
			err = fmt.Errorf("no node answers at %s, as GRANGE_API says: %w", to.base, err)
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, fmt.Errorf("GRANGE_TOKEN is not the token of the node at %s, which is in its data folder, in %s", to.base, api.TokenName)
	}
	var problem problemError
	problem.Status, problem.Title = resp.StatusCode, http.StatusText(resp.StatusCode)
	if b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err == nil {
		json.Unmarshal(b, &problem) // a body that is no problem document leaves the status
	}
	return nil, &problem
}

// events calls each with every state of an operation until it ends.
func (c *cli) events(ctx context.Context, id string, each func(api.Operation)) error {
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

// request is one that the API is asked.
type request struct {
	method, path string
	body         any
}

// tell asks the API and prints its document with --json, else the text that is made of
// it, with columns where it has tabs.
func tell[T any](ctx context.Context, app *cli, std stdio, r request, text func(w io.Writer, v T)) error {
	var raw json.RawMessage
	if err := app.ask(ctx, r.method, r.path, r.body, &raw); err != nil {
		return err
	}
	return show(app, std, raw, text)
}

// show prints a document of the API; an empty one is of an answer without any.
func show[T any](app *cli, std stdio, raw json.RawMessage, text func(w io.Writer, v T)) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if app.JSON {
		_, err := fmt.Fprintf(std.out, "%s\n", raw)
		return err
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	var b strings.Builder
	text(&b, v)
	_, err := io.WriteString(std.out, terminal.Columns(b.String(), terminal.Width(std.out)))
	return err
}

// said prints one line when something was done that has no document.
func said(format string, args ...any) func(io.Writer, struct{}) {
	return func(w io.Writer, _ struct{}) { fmt.Fprintf(w, format+"\n", args...) }
}

// complain prints an error: each of several on its own line, wrapped on a terminal.
func complain(w io.Writer, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, terminal.Wrap("grange: "+strings.TrimSuffix(line, "\n"), terminal.Width(w)))
	}
}
