package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// answerTimeout is how long the kernel waits for an answer before it takes the
	// connection for dead; awayTimeout how long it holds requests back without one.
	answerTimeout = 60 * time.Second
	awayTimeout   = 10 * time.Minute
	// redialPause is how long after a try in vain the server is looked for again.
	redialPause = 100 * time.Millisecond
)

// The kernel's interface: include/uapi/linux/nbd-netlink.h.
const (
	nbdConnect, nbdDisconnect, nbdReconfigure = 1, 2, 3

	nbdIndex, nbdSize, nbdBlockSize, nbdTimeout, nbdServerFlags, nbdClientFlags, nbdSockets, nbdDeadTimeout = 1, 2, 3, 4, 5, 6, 7, 8

	nbdSocketItem, nbdSocketFile = 1, 1
)

// KernelNBD is a block device by the kernel's own client, which waits for another
// connection when the one that it has ends.
type KernelNBD struct {
	number int
	export *url.URL
	family uint16
	link   *os.File // a second name of the kernel's connection, Run's while that runs
}

// ConnectNBD makes /dev/nbdNUMBER of an export as the command line names it:
// nbd+unix:///NAME?socket=PATH. Run keeps it connected.
func ConnectNBD(number int, device string) (*KernelNBD, error) {
	export, err := url.Parse(device)
	if err != nil {
		return nil, err
	}
	k := &KernelNBD{number: number, export: export}
	if k.family, err = netlinkFamily("nbd"); err != nil {
		return nil, err
	}
	return k, k.connect(nbdConnect)
}

// Path is what is opened.
func (k *KernelNBD) Path() string { return fmt.Sprintf("/dev/nbd%d", k.number) }

// Run gives the kernel a new connection whenever the one that it has is gone, until ctx
// is done: then it takes the device from its users.
func (k *KernelNBD) Run(ctx context.Context) (err error) {
	ended := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() { ended <- netlink(k.family, nbdDisconnect, attribute32(nbdIndex, uint32(k.number))) })
	defer func() {
		if !unhook() {
			err = errors.Join(err, <-ended)
		}
		err = errors.Join(err, k.link.Close())
	}()
	for {
		gone := []unix.PollFd{{Fd: int32(k.link.Fd()), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(gone, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if gone[0].Revents == 0 {
			continue
		}
		for k.connect(nbdReconfigure) != nil { // nobody serves it, or the kernel has not seen yet that it is gone
			select {
			case <-time.After(redialPause):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// connect opens the export and gives the connection to the kernel.
func (k *KernelNBD) connect(command byte) error {
	conn, err := net.Dial("unix", k.export.Query().Get("socket"))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTimeout))
	size, flags, err := openExport(conn, k.export.Path[1:])
	if err != nil {
		return err
	}
	link, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	attributes := append(attribute32(nbdIndex, uint32(k.number)),
		nested(nbdSockets, nested(nbdSocketItem, attribute32(nbdSocketFile, uint32(link.Fd()))))...)
	for kind, value := range map[uint16]uint64{
		nbdSize: size, nbdBlockSize: sector, nbdServerFlags: uint64(flags), nbdClientFlags: 0,
		nbdTimeout: uint64(answerTimeout / time.Second), nbdDeadTimeout: uint64(awayTimeout / time.Second),
	} {
		attributes = append(attributes, attribute64(kind, value)...)
	}
	if err := netlink(k.family, command, attributes); err != nil {
		return errors.Join(err, link.Close())
	}
	if k.link != nil {
		err = k.link.Close()
	}
	k.link = link
	return err
}
