package throwaway

import (
	"bytes"
	"sync"
	"time"
)

const (
	// consoleKept is how much of a console is kept: the last screen, about.
	consoleKept = 2 << 10
	// wordsKept is how much of it an error has.
	wordsKept = 400
	// settled is how long a console is silent behind what is a prompt, and no part of a longer line.
	settled = 500 * time.Millisecond
	// prompt is what a console asks for when the system is up.
	prompt = "login:"
)

// console is what a machine has said last, and its emulator. Safe for concurrent use.
type console struct {
	mu   sync.Mutex // guards what follows
	kept []byte
	at   time.Time // of the last word
}

// Write implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept, c.at = append(c.kept, p...), time.Now()
	if n := len(c.kept); n > consoleKept {
		c.kept = append(c.kept[:0], c.kept[n-consoleKept:]...)
	}
	return len(p), nil
}

// asks reports whether it ends with a prompt.
func (c *console) asks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.HasSuffix(bytes.TrimSpace(c.kept), []byte(prompt)) && time.Since(c.at) >= settled
}

// last is what was said last, as one line.
func (c *console) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	words := bytes.Join(bytes.Fields(c.kept), []byte(" "))
	return string(words[max(0, len(words)-wordsKept):])
}
