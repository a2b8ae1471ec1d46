package main

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/lmittmann/tint"

	"github.com/grangemesh/grange/cmd/grange/secrets"
	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/origin/content"
)

// logFlags say how a log is written.
type logFlags struct {
	LogFormat string     `enum:"text,json" default:"text" help:"Log lines for people or for programs: ${enum}; --json means json."`
	LogLevel  slog.Level `default:"info" help:"The least that is logged: debug, info, warn or error; -v means debug." placeholder:"LEVEL"`
}

// open logs to w, and to also the same as JSON, unless that is nil.
func (f logFlags) open(app *cli, w, also io.Writer) *slog.Logger {
	if app.Verbose {
		f.LogLevel = min(f.LogLevel, slog.LevelDebug)
	}
	if app.JSON {
		f.LogFormat = "json"
	}
	options := &slog.HandlerOptions{Level: f.LogLevel, ReplaceAttr: printed}
	all := []slog.Handler{forPeople(w, options)}
	if f.LogFormat == "json" {
		all[0] = slog.NewJSONHandler(w, options)
	}
	if also != nil {
		all = append(all, slog.NewJSONHandler(also, options))
	}
	return slog.New(slog.NewMultiHandler(all...))
}

// forPeople writes lines, in color on a terminal. What others have chosen is quoted, as JSON does too.
func forPeople(w io.Writer, o *slog.HandlerOptions) slog.Handler {
	options := &tint.Options{Level: o.Level, ReplaceAttr: o.ReplaceAttr, TimeFormat: time.TimeOnly}
	if _, ok := terminal.Of(w); ok {
		return tint.NewHandler(terminal.Raw(w), options)
	}
	options.TimeFormat, options.NoColor = time.DateTime, true
	return tint.NewHandler(w, options)
}

// printed puts errors on one line, and takes out of texts what looks like a secret: a log is read by many.
func printed(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case error:
		a.Value = slog.StringValue(secrets.Hide(content.Line(v)))
	case string:
		a.Value = slog.StringValue(secrets.Hide(v))
	}
	return a
}

// recentMax is how many bytes of the log are kept for who asks for them: some thousand lines.
const recentMax = 256 << 10

// recent keeps the last lines that were written to it. The zero value is ready; safe for concurrent use.
type recent struct {
	mu    sync.Mutex // guards lines
	lines []byte
}

// Write takes whole lines.
func (r *recent) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lines = append(r.lines, p...); len(r.lines) > 2*recentMax { // seldom: what is moved is a half
		from := len(r.lines) - recentMax
		r.lines = append(r.lines[:0], r.lines[from+1+bytes.IndexByte(r.lines[from:], '\n'):]...)
	}
	return len(p), nil
}

func (r *recent) text() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.lines)
}
