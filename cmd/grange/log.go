package main

import (
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"

	"github.com/grangemesh/grange/cmd/grange/terminal"
	"github.com/grangemesh/grange/origin/content"
)

// newLog writes lines for people, in color on a terminal, or JSON for programs. What others have chosen is quoted by either.
func newLog(w io.Writer, verbose, asJSON bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: onOneLine}))
	}
	options := &tint.Options{Level: level, ReplaceAttr: onOneLine, TimeFormat: time.TimeOnly}
	if _, ok := terminal.Of(w); ok {
		return slog.New(tint.NewHandler(terminal.Raw(w), options))
	}
	options.TimeFormat, options.NoColor = time.DateTime, true
	return slog.New(tint.NewHandler(w, options))
}

func onOneLine(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(content.Line(err))
	}
	return a
}
