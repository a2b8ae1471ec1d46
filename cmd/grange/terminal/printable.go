// Package terminal is what commands print on: text that steers nothing, and fits.
package terminal

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Printable is a writer of text on its way to a terminal: what would steer it comes out
// as \u001b, in JSON too, for names, addresses and errors are chosen by others. All that
// commands print goes through it.
type Printable struct{ io.Writer }

// Raw is the writer under a printable one: for bytes that are no text, and the bar.
func Raw(w io.Writer) io.Writer {
	if p, ok := w.(Printable); ok {
		return p.Writer
	}
	return w
}

func (p Printable) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.Writer, Plain(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Plain is a text with whatever would steer a terminal written out.
func Plain(s string) string {
	if !strings.ContainsFunc(s, steers) {
		return s
	}
	var out strings.Builder
	for _, r := range s {
		if steers(r) {
			fmt.Fprintf(&out, `\u%04x`, r)
		} else {
			out.WriteRune(r)
		}
	}
	return out.String()
}

// steers reports whether a terminal does something else with a rune than to show it. A
// byte that is no UTF-8 may be such a thing to an old one.
func steers(r rune) bool {
	return r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError
}

// Of returns what a writer is of a terminal, if it is one.
func Of(w io.Writer) (*os.File, bool) {
	f, ok := Raw(w).(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// Width is how many columns a terminal has; 0 is of what is none.
func Width(w io.Writer) int {
	f, ok := Of(w)
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
	// columnMin is the least that a column is cut to.
	columnMin = 8
	// wrapMin is the narrowest terminal that text is wrapped for.
	wrapMin = 20
)

// Columns lays out lines with tabs. A list that is wider than the terminal has its widest
// columns cut, but for the first, by which commands name a row; what has two columns, a name and its value, is never.
func Columns(text string, width int) string {
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
		line := ""
		for i, cell := range row {
			if len(row) > 1 && len(wide) > 2 {
				cell = Cut(cell, wide[i])
			}
			if i < len(row)-1 {
				cell = fmt.Sprintf("%-*s", wide[i]+columnGap, cell)
			}
			line += cell
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// fit makes columns narrower, the widest first, until they fit.
func fit(wide []int, width int) {
	total := columnGap * (len(wide) - 1)
	for _, n := range wide {
		total += n
	}
	for ; total > width; total-- {
		widest := 1 + slices.Index(wide[1:], slices.Max(wide[1:]))
		if wide[widest] <= columnMin {
			return
		}
		wide[widest]--
	}
}

// Cut is a text of at most n characters.
func Cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(0, n-1)]) + "…"
}

// Wrap breaks a line between words, where it is wider than the terminal.
func Wrap(text string, width int) string {
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
