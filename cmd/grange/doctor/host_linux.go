package doctor

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// filesMin is how many files a node should be allowed to have open: some thousand volumes
	// and connections.
	filesMin = 8192
	// mtuMin is what QUIC, and IPv6, want of a network.
	mtuMin = 1280
	// bufferMin is the receive buffer that QUIC asks for: with less, what comes fast is lost.
	bufferMin = 7_500_000
)

// strange returns what of the data folder belongs to another user than the folder itself.
func strange(dir string) (path string, owner, of uint32) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", 0, 0
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", 0, 0
	}
	of = info.Sys().(*syscall.Stat_t).Uid
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != "lost+found" { // of a disk of its own
			if owner := info.Sys().(*syscall.Stat_t).Uid; owner != of {
				return filepath.Join(dir, e.Name()), owner, of
			}
		}
	}
	return "", 0, 0
}

// filesFinding is of what this user may have open, as a node has it that is started here.
func filesFinding() []Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max >= filesMin {
		return nil
	}
	return []Finding{Warn.Of("files", fmt.Sprintf("a process of this user may have %d files open: with hundreds of volumes or members a node needs %d", limit.Max, filesMin)).By("systemctl edit grange  # [Service] LimitNOFILE=65536; in a shell, ulimit -n 65536 as root")}
}

// hostFindings are of the kernel and its networks.
func hostFindings() (out []Finding) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		out = append(out, Note.Of("fuse", "trees can't be mounted: "+err.Error()).By("modprobe fuse && chmod 0666 /dev/fuse"))
	} else {
		f.Close()
		if _, err := exec.LookPath("fusermount3"); err != nil && os.Geteuid() != 0 {
			out = append(out, Note.Of("fuse", "a user who is not root mounts trees by fusermount3, which is not here").By("apt-get install fuse3"))
		}
	}
	links, err := net.Interfaces()
	for _, l := range links {
		if err == nil && l.Flags&net.FlagUp != 0 && l.MTU < mtuMin {
			out = append(out, Warn.Of("mtu", fmt.Sprintf("packets on %s have %d bytes: members are not reached by QUIC, nor by IPv6, over it", l.Name, l.MTU)).By("ip link set dev %s mtu 1500", l.Name))
		}
	}
	text, err := os.ReadFile("/proc/sys/net/core/rmem_max") // not there in a namespace of networks
	if n, aerr := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && aerr == nil && n < bufferMin {
		out = append(out, Note.Of("buffers", fmt.Sprintf("the kernel gives a socket %d bytes to receive into at most: QUIC is faster with %d", n, bufferMin)).By("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d  # and in /etc/sysctl.d/grange.conf", bufferMin, bufferMin))
	}
	return out
}
