package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a page may take for what it does in a second: the machine has other work.
const patience = 90 * time.Second

// browser is a Chromium that is told what to do over a pipe, in the DevTools protocol. The module that people use for that
// brings seven others and a minute of compiling; what is needed here is this.
type browser struct {
	cmd *exec.Cmd
	in  *os.File

	mu      sync.Mutex // guards what follows, and the pages' fields
	last    int
	waiting map[int]chan reply
	pages   map[string]*tab // by session
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// tab is one page, and what befell it.
type tab struct {
	t       *testing.T
	b       *browser
	session string

	wrong []string // errors of the console, and exceptions
	moved int64    // bytes that came over the network
	held  []string // requests that wait, see hold
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirsToo, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "chromium-")
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{in: in, waiting: map[int]chan reply{}, pages: map[string]*tab{}}
	b.cmd = exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-sync",
		"--disable-background-networking", "--disable-component-update", "--disable-domain-reliability", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--remote-debugging-pipe", "--user-data-dir="+profile, "about:blank")
	b.cmd.ExtraFiles = []*os.File{theirs, theirsToo}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	theirsToo.Close()
	read := make(chan struct{})
	go func() { b.read(out); close(read) }()
	t.Cleanup(func() {
		in.Close()
		syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		b.cmd.Wait()
		<-read
		out.Close()
		os.RemoveAll(profile)
	})
	return b
}

// read takes answers and events until the browser ends.
func (b *browser) read(out *os.File) {
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID        int
			SessionID string
			Method    string
			Params    json.RawMessage
			reply
		}
		if json.Unmarshal(bytes.TrimSuffix(line, []byte{0}), &m) != nil {
			continue
		}
		b.mu.Lock()
		if to, asked := b.waiting[m.ID]; asked && m.ID > 0 {
			delete(b.waiting, m.ID)
			to <- m.reply
		} else if p := b.pages[m.SessionID]; p != nil {
			p.hear(m.Method, m.Params)
		}
		b.mu.Unlock()
	}
}

// hear notes what befalls a page. Called with mu.
func (p *tab) hear(method string, params json.RawMessage) {
	var e struct {
		Type              string
		RequestID         string
		EncodedDataLength float64
		ExceptionDetails  json.RawMessage
		Entry             struct{ Level, Text, URL string }
		Args              json.RawMessage
		Request           struct{ URL string }
	}
	_ = json.Unmarshal(params, &e) // of what has other members these stay empty
	switch {
	case method == "Runtime.exceptionThrown":
		p.wrong = append(p.wrong, string(e.ExceptionDetails))
	case method == "Runtime.consoleAPICalled" && (e.Type == "error" || e.Type == "warning"):
		p.wrong = append(p.wrong, string(e.Args))
	case method == "Log.entryAdded" && e.Entry.Level == "error":
		p.wrong = append(p.wrong, e.Entry.Text+" "+e.Entry.URL)
	case method == "Network.loadingFinished": // of streams that go on nothing is counted
		p.moved += int64(e.EncodedDataLength)
	case method == "Fetch.requestPaused":
		p.held = append(p.held, e.RequestID)
	}
}

// call asks the browser, of a page, unless session is "".
func (b *browser) call(ctx context.Context, session, method string, params, out any) error {
	b.mu.Lock()
	b.last++
	id, to := b.last, make(chan reply, 1)
	b.waiting[id] = to
	m, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		m, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err == nil {
		_, err = b.in.Write(append(m, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case r := <-to:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(r.Result, out)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

// open opens a page of its own storage, as wide and high as that, at an address.
func (b *browser) open(t *testing.T, width, height int, url string) *tab {
	t.Helper()
	var target struct{ TargetID, SessionID, BrowserContextID string }
	p := &tab{t: t, b: b}
	ask := func(method string, params any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := b.call(ctx, p.session, method, params, &target); err != nil {
			t.Fatal(err)
		}
	}
	ask("Target.createBrowserContext", nil)
	ask("Target.createTarget", map[string]any{"url": "about:blank", "browserContextId": target.BrowserContextID})
	ask("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
	p.session = target.SessionID
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		ask(domain+".enable", map[string]any{})
	}
	ask("Emulation.setFocusEmulationEnabled", map[string]any{"enabled": true})
	ask("Page.bringToFront", map[string]any{})
	ask("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
	p.goTo(url)
	return p
}

func (p *tab) call(method string, params, out any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := p.b.call(ctx, p.session, method, params, out); err != nil {
		p.t.Fatal(err)
	}
}

func (p *tab) goTo(url string) {
	p.t.Helper()
	p.call("Page.navigate", map[string]any{"url": url}, nil)
}

// eval returns what an expression is on the page, which may be a promise.
func eval[T any](p *tab, expression string) (v T) {
	p.t.Helper()
	var out struct {
		Result struct{ Value json.RawMessage }
		// ExceptionDetails says that it failed.
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	p.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &out)
	if out.ExceptionDetails != nil {
		p.t.Fatalf("%.200s: %s", expression, out.ExceptionDetails.Exception.Description)
	}
	if len(out.Result.Value) > 0 {
		if err := json.Unmarshal(out.Result.Value, &v); err != nil {
			p.t.Fatalf("%.200s: %v", expression, err)
		}
	}
	return v
}

// until waits until an expression is true on the page.
func (p *tab) until(condition string) {
	p.t.Helper()
	late := fmt.Sprint(patience.Milliseconds() - 2000)
	was := eval[string](p, `new Promise((done) => { const began = Date.now(); const look = () => {
		let is = ""; try { is = (`+condition+`) ? "yes" : "" } catch (e) { is = "" }
		if (is) done(""); else if (Date.now() - began > `+late+`) done(document.body.innerText || "nothing"); else setTimeout(look, 40) }; look() })`)
	if was != "" {
		p.t.Fatalf("it never was so: %s\nthe page says: %.3000s", condition, was)
	}
}

// text is what a person reads on the page, or in a part of it.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return eval[string](p, `document.querySelector(`+quote(selector)+`)?.innerText ?? ""`)
}

func quote(s string) string {
	b, _ := json.Marshal(s) // of a string never fails
	return string(b)
}

// key presses one, such as Tab or Enter, with modifiers as the protocol has them: 8 is shift.
func (p *tab) key(key string, modifiers int) {
	p.t.Helper()
	code := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}[key]
	for _, kind := range []string{"keyDown", "keyUp"} {
		params := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
		if key == "Enter" && kind == "keyDown" {
			params["text"] = "\r"
		}
		p.call("Input.dispatchKeyEvent", params, nil)
	}
}

// write types a text where the focus is.
func (p *tab) write(text string) {
	p.t.Helper()
	p.call("Input.insertText", map[string]any{"text": text}, nil)
}

// complaints returns what the console said since it was asked last, but for what has one of some words.
func (p *tab) complaints(but ...string) []string {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	out := slices.DeleteFunc(p.wrong, func(s string) bool {
		return slices.ContainsFunc(but, func(b string) bool { return strings.Contains(s, b) })
	})
	p.wrong = nil
	return out
}

// transferred returns the bytes that came since it was asked last.
func (p *tab) transferred() int64 {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	n := p.moved
	p.moved = 0
	return n
}

// hold lets no request of the API through until it is let go.
func (p *tab) hold() (release func()) {
	p.t.Helper()
	p.call("Fetch.enable", map[string]any{"patterns": []any{map[string]any{"urlPattern": "*/api/*"}}}, nil)
	return func() {
		p.b.mu.Lock()
		held := p.held
		p.held = nil
		p.b.mu.Unlock()
		for _, id := range held {
			p.call("Fetch.continueRequest", map[string]any{"requestId": id}, nil)
		}
		p.call("Fetch.disable", map[string]any{}, nil)
	}
}

// dark, calm and such are what a page is told of its reader's wishes.
func (p *tab) media(features map[string]string) {
	p.t.Helper()
	list := []any{}
	for name, value := range features {
		list = append(list, map[string]any{"name": name, "value": value})
	}
	p.call("Emulation.setEmulatedMedia", map[string]any{"features": list}, nil)
}

// picture keeps a screenshot where GRANGE_SCREENSHOTS says.
func (p *tab) picture(name string) {
	p.t.Helper()
	dir := os.Getenv("GRANGE_SCREENSHOTS")
	if dir == "" {
		return
	}
	var out struct{ Data string }
	p.call("Page.captureScreenshot", map[string]any{"format": "png"}, &out)
	b, err := base64.StdEncoding.DecodeString(out.Data)
	if err = errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), b, 0o644)); err != nil {
		p.t.Fatal(err)
	}
}
