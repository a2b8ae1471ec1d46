package instance

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// reserve gives an instance a port, unless it has one or needs none: it keeps that until it is deprovisioned.
func (h *Hub) reserve(i *hosted) error {
	e, _ := i.now()
	if e.Port != 0 || e.Spec.NoPort {
		return nil
	}
	h.ports.Lock() // until it is noted whose it is
	defer h.ports.Unlock()
	taken := map[int]bool{}
	for _, other := range h.snapshot() {
		e, _ := other.now()
		taken[e.Port] = true
	}
	for port := h.cfg.First; port <= h.cfg.Last; port++ {
		if taken[port] || !isFree(port) {
			continue
		}
		return i.change(func(e *entry) error { e.Port = port; return nil })
	}
	return fmt.Errorf("%w: of the ports %d to %d that instances are given none is free; deprovision some, or give the node more with --instance-ports", content.ErrUnavailable, h.cfg.First, h.cfg.Last)
}

// isFree reports whether nobody else listens on a port of this host.
func isFree(port int) bool {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// established is the state of a connection in proc(5).
const established = "01"

// isConnected reports whether somebody is connected to a port of this host.
func isConnected(port int) (bool, error) {
	suffix := fmt.Sprintf(":%04X", port)
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		used, lines := false, bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			used = used || len(fields) > 3 && strings.HasSuffix(fields[1], suffix) && fields[3] == established
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil || used {
			return used, err
		}
	}
	return false, nil
}
