package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

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
	_, err := io.WriteString(std.out, columns(b.String(), width(std.out)))
	return err
}

// said prints one line when something was done that has no document.
func said(format string, args ...any) func(io.Writer, struct{}) {
	return func(w io.Writer, _ struct{}) { fmt.Fprintf(w, format+"\n", args...) }
}

// width is how many columns a terminal has; 0 is of what is none.
func width(w io.Writer) int {
	f, ok := terminal(w)
	if !ok {
		return 0
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return n
}

const (
	// columnGap is between two columns.
	columnGap = 2
	// columnMin is the least that a column is cut to: a name is known by as much.
	columnMin = 8
	// wrapMin is the narrowest terminal that text is wrapped for.
	wrapMin = 20
)

// columns lays out lines with tabs. A list that is wider than the terminal has its widest
// columns cut; what has two columns, a name and its value, is never.
func columns(text string, width int) string {
	var rows [][]string
	var wide []int
	for line := range strings.Lines(text) {
		row := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		rows = append(rows, row)
		for i, cell := range row {
			if i == len(wide) {
				wide = append(wide, 0)
			}
			if len(row) > 1 { // a sentence among them takes no part
				wide[i] = max(wide[i], utf8.RuneCountInString(cell))
			}
		}
	}
	if width > 0 && len(wide) > 2 {
		fit(wide, width)
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			if len(row) > 1 && len(wide) > 2 {
				cell = cut(cell, wide[i])
			}
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", wide[i]+columnGap-utf8.RuneCountInString(cell)))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// fit makes columns narrower, the widest first, until they fit.
func fit(wide []int, width int) {
	for {
		total, widest := columnGap*(len(wide)-1), 0
		for i, n := range wide {
			total += n
			if n > wide[widest] {
				widest = i
			}
		}
		if total <= width || wide[widest] <= columnMin {
			return
		}
		wide[widest]--
	}
}

// cut is a text of at most n characters.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(0, n-1)]) + "…"
}

// complain prints an error: each of several on its own line, wrapped on a terminal.
func complain(w io.Writer, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, wrap("grange: "+strings.TrimSuffix(line, "\n"), width(w)))
	}
}

// wrap breaks a line between words, where it is wider than the terminal.
func wrap(text string, width int) string {
	if width < wrapMin {
		return text
	}
	var b strings.Builder
	at := 0
	for i, word := range strings.Split(text, " ") {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString("\n  ")
			at = 2
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}
