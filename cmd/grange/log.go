package main

import (
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"

	"github.com/grangemesh/grange/cmd/grange/terminal"
)

// newLog writes lines for people, in color on a terminal, or JSON. It quotes others.
func newLog(w io.Writer, verbose, asJSON bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	if _, ok := terminal.Of(w); !ok {
		return slog.New(tint.NewHandler(w, &tint.Options{Level: level, TimeFormat: time.DateTime, NoColor: true}))
	}
	return slog.New(tint.NewHandler(terminal.Raw(w), &tint.Options{Level: level, TimeFormat: time.TimeOnly}))
}
