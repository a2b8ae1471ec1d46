// Package complete finds what may stand next on a command line, from the model of all
// commands, and has the scripts by which shells ask. It knows no command: names of what a
// node has are its caller's to find.
package complete

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// scripts ask the program itself, so they fit each version of it; by go:embed.
//
//go:embed bash.sh zsh.sh fish.fish
var scripts embed.FS

// Script returns what a shell has to read.
func Script(shell string) (string, error) {
	file := map[string]string{"bash": "bash.sh", "zsh": "zsh.sh", "fish": "fish.fish"}[shell]
	if file == "" {
		return "", fmt.Errorf("no completion for %s: there is one for bash, zsh and fish", shell)
	}
	script, err := scripts.ReadFile(file)
	return string(script), err
}

// Candidate is what may stand in place of the last word, with what a shell says of it.
type Candidate struct{ Word, Help string }

// Names returns what a node has of a kind, which is the name of a group of commands.
type Names func(kind string) []string

// line is what was read of a command line.
type line struct {
	node    *kong.Node
	pending *kong.Flag // whose value comes next
	given   int        // positional arguments
	plain   bool       // behind --, where no word is a flag
}

// Of returns what may stand in place of the last word, sorted; nothing where files may.
func Of(app *kong.Application, words []string, names Names) []Candidate {
	if len(words) == 0 {
		words = []string{""}
	}
	l := line{node: app.Node}
	for _, word := range words[:len(words)-1] {
		l.take(word)
	}
	last := words[len(words)-1]
	out := l.next(last, names)
	out = slices.DeleteFunc(out, func(c Candidate) bool { return c.Word == "" || !strings.HasPrefix(c.Word, last) })
	slices.SortFunc(out, func(a, b Candidate) int { return strings.Compare(a.Word, b.Word) })
	return slices.CompactFunc(out, func(a, b Candidate) bool { return a.Word == b.Word })
}

// take reads a word that is whole.
func (l *line) take(word string) {
	switch name, _, valued := strings.Cut(word, "="); {
	case l.pending != nil:
		l.pending = nil
	case word == "--":
		l.plain = true
	case !l.plain && strings.HasPrefix(word, "-"):
		for _, f := range l.flags() {
			long := name == "--"+f.Name
			if (long || f.Short != 0 && word == "-"+string(f.Short)) && !valued && !f.IsBool() && !f.IsCounter() {
				l.pending = f
			}
		}
	default:
		for _, child := range l.node.Children {
			if child.Name == word || slices.Contains(child.Aliases, word) {
				l.node, l.given = child, 0
				return
			}
		}
		l.given++
	}
}

func (l *line) flags() []*kong.Flag { return slices.Concat(l.node.AllFlags(true)...) }

// next returns what may stand here; some may not begin as the word does.
func (l *line) next(word string, names Names) (out []Candidate) {
	switch flag, _, valued := strings.Cut(word, "="); {
	case l.pending != nil:
		return values(l.pending.Value, "")
	case !l.plain && valued && strings.HasPrefix(flag, "--"):
		for _, f := range l.flags() {
			if flag == "--"+f.Name {
				return values(f.Value, flag+"=")
			}
		}
		return nil
	case !l.plain && strings.HasPrefix(word, "-"):
		for _, f := range l.flags() {
			out = append(out, Candidate{"--" + f.Name, f.Help})
		}
		return out
	case len(l.node.Children) > 0:
		for _, child := range l.node.Children {
			if !child.Hidden {
				out = append(out, Candidate{child.Name, child.Help})
			}
		}
		return out
	}
	args := l.node.Positional
	if l.given >= len(args) && (len(args) == 0 || !args[len(args)-1].IsCumulative()) {
		return nil
	}
	if out = values(args[min(l.given, len(args)-1)], ""); out != nil {
		return out
	}
	for _, name := range names(l.kind()) {
		out = append(out, Candidate{name, ""})
	}
	return out
}

// values are those of an enumeration.
func values(v *kong.Value, before string) (out []Candidate) {
	if v.Enum == "" {
		return nil
	}
	for _, word := range v.EnumSlice() {
		out = append(out, Candidate{before + word, v.Help})
	}
	return out
}

// kind is that of what is named here, "" for what does not exist yet, and files.
func (l *line) kind() string {
	group, command := l.node.Parent.Name, l.node.Name
	if slices.Contains([]string{"import", "create"}, command) || l.given > 0 && command+group != "movevolume" {
		return ""
	}
	switch {
	case l.given > 0 || group == "mesh" || command == "ping":
		return "members"
	case command == "why" || command+group == "lssnapshot":
		return "volume"
	case group == "grange":
		return "image"
	}
	return group
}
