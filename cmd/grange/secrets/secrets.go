// Package secrets takes out of texts what nobody else is to read: values that are known to be
// secret, and what looks like one. It takes rather too much than too little.
package secrets

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Removed stands where a secret was.
const Removed = "[removed]"

const (
	// knownMin is the least length of a known value that is looked for: shorter ones stand
	// in too many words.
	knownMin = 6
	// fileMax bounds a file of credentials.
	fileMax = 64 << 10
)

// words are what names of secrets have in them.
const words = `secret|token|passw|passphrase|credential|signature|private|api[-_]?key|access[-_]?key|sas|cookie`

// value is that of a name.
const value = `("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'&;,}\]]+)`

var (
	named  = regexp.MustCompile(`(?i)` + words)
	userIn = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s"'<>]*@`)
	pem    = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`)
	tokens = regexp.MustCompile(`grange1[A-Za-z0-9_-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]+|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+`)
	bearer = regexp.MustCompile(`(?i)\b(authorization["']?\s*[:=]\s*["']?|bearer\s+|basic\s+)((?:bearer|basic|aws4-hmac-sha256)\s+)?[^\s"',;]+(?:,\s*\w+=[^\s"',;]+)*`)
	// assigned, quoted and ofLine are a name with one of the words, what joins it to its value, and
	// the value: in quotes, or to the next space or separator of a query. In the midst of a line
	// a colon joins sentences.
	assigned = regexp.MustCompile(`(?i)([\w.-]*(?:` + words + `)[\w.-]*["']?(?:\s*=\s*|%3D))` + value)
	quoted   = regexp.MustCompile(`(?i)(["'][\w.-]*(?:` + words + `)[\w.-]*["']\s*:\s*)` + value)
	ofLine   = regexp.MustCompile(`(?im)^(\s*(?:- )?[\w.-]*(?:` + words + `)[\w.-]*:[ \t]*)` + value)
)

// Hide takes out what looks like a secret.
func Hide(text string) string {
	for _, is := range []struct {
		pattern *regexp.Regexp
		instead string
	}{{pem, Removed}, {tokens, Removed}, {userIn, "${1}" + Removed + "@"}, {bearer, "${1}" + Removed}, {assigned, "${1}" + Removed}, {quoted, "${1}" + Removed}, {ofLine, "${1}" + Removed}} {
		text = is.pattern.ReplaceAllString(text, is.instead)
	}
	return text
}

// IsName reports whether what is called so is a secret.
func IsName(name string) bool { return named.MatchString(name) }

// Known are values that are secret wherever they stand.
type Known struct{ values []string }

// Add notes a value.
func (k *Known) Add(value string) {
	value = strings.Trim(strings.TrimSpace(value), `"'`)
	if len(value) < knownMin {
		return
	}
	for _, form := range []string{value, url.QueryEscape(value), url.PathEscape(value)} {
		if !slices.Contains(k.values, form) {
			k.values = append(k.values, form)
		}
	}
	slices.SortFunc(k.values, func(a, b string) int { return len(b) - len(a) }) // one may hold another
}

// AddEnv notes the values of the environment whose names say that they are secret.
func (k *Known) AddEnv(env []string) {
	for _, pair := range env {
		name, value, _ := strings.Cut(pair, "=")
		if IsName(name) {
			k.Add(value)
		}
		k.addURL(value)
	}
}

// addURL notes the user and the password of a URL.
func (k *Known) addURL(text string) {
	if u, err := url.Parse(strings.Trim(text, `"' `)); err == nil && u.User != nil {
		password, _ := u.User.Password()
		k.Add(password)
	}
}

// AddFile notes what a file has behind names that say so, as NAME=VALUE or NAME: VALUE, and
// all of a file of one line. One that is not there, or can't be read, has none.
func (k *Known) AddFile(path string) {
	b, err := os.ReadFile(path)
	if err != nil || len(b) > fileMax {
		return
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		i := strings.IndexAny(line, "=:")
		if i > 0 && IsName(line[:i]) {
			k.Add(line[i+1:])
		}
		if i > 0 {
			k.addURL(line[i+1:])
		}
	}
	if text := strings.TrimSpace(string(b)); !strings.ContainsAny(text, "\n \t") {
		k.Add(text)
	}
}

// Hide takes out the known values, then what looks like a secret.
func (k *Known) Hide(text string) string {
	for _, v := range k.values {
		text = strings.ReplaceAll(text, v, Removed)
	}
	return Hide(text)
}

// HideJSON is Hide for a document: of members whose names say that they are secret, or that
// also says, nothing is left. What is no document is taken for text.
func (k *Known) HideJSON(doc []byte, also ...string) []byte {
	var v any
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if d.Decode(&v) != nil || d.More() {
		return []byte(k.Hide(string(doc)))
	}
	out, err := json.MarshalIndent(k.hidden(v, also), "", "  ")
	if err != nil {
		return []byte(err.Error())
	}
	return append(out, '\n')
}

func (k *Known) hidden(v any, also []string) any {
	switch v := v.(type) {
	case string:
		return k.Hide(v)
	case []any:
		for i := range v {
			v[i] = k.hidden(v[i], also)
		}
	case map[string]any:
		out := map[string]any{}
		for name, value := range v {
			_, isNumber := value.(json.Number)
			_, isBool := value.(bool)
			if (IsName(name) || slices.Contains(also, name)) && !isNumber && !isBool {
				value = Removed
			}
			out[k.Hide(name)] = k.hidden(value, also)
		}
		return out
	}
	return v
}
