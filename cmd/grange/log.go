package main

import (
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// newLog writes lines for people, in color on a terminal, or JSON for programs. What
// others have chosen is quoted by either.
func newLog(w io.Writer, verbose, asJSON bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	if _, ok := terminal(w); !ok {
		return slog.New(tint.NewHandler(w, &tint.Options{Level: level, TimeFormat: time.DateTime, NoColor: true}))
	}
	return slog.New(tint.NewHandler(raw(w), &tint.Options{Level: level, TimeFormat: time.TimeOnly}))
}

// terminal returns what a writer is of a terminal, if it is one.
func terminal(w io.Writer) (*os.File, bool) {
	f, ok := raw(w).(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
