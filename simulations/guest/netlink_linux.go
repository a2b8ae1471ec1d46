package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// attribute is one of netlink's.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func attribute32(kind uint16, v uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func attribute64(kind uint16, v uint64) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint64(nil, v))
}

func nested(kind uint16, value []byte) []byte { return attribute(kind|unix.NLA_F_NESTED, value) }

// netlinkFamily returns the number of a family of generic netlink.
func netlinkFamily(name string) (uint16, error) {
	answer, err := ask(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, attribute(unix.CTRL_ATTR_FAMILY_NAME, append([]byte(name), 0)))
	for len(answer) >= unix.SizeofNlAttr && err == nil {
		n := int(binary.NativeEndian.Uint16(answer))
		if binary.NativeEndian.Uint16(answer[2:]) == unix.CTRL_ATTR_FAMILY_ID && n >= 6 {
			return binary.NativeEndian.Uint16(answer[4:]), nil
		}
		answer = answer[min(len(answer), max(n+3, 4)&^3):]
	}
	return 0, fmt.Errorf("the kernel's netlink has no %s: %w", name, err)
}

// netlink gives the kernel a command.
func netlink(family uint16, command byte, attributes []byte) error {
	_, err := ask(family, command, attributes)
	return err
}

// ask sends a command, and returns the attributes of the answer, if there is one beside
// the acknowledgement.
func ask(family uint16, command byte, attributes []byte) (answer []byte, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	const head = unix.SizeofNlMsghdr + unix.GENL_HDRLEN
	b := binary.NativeEndian.AppendUint32(nil, uint32(head+len(attributes)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, make([]byte, 8)...) // sequence and port
	b = append(append(b, command, 1, 0, 0), attributes...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	for b := make([]byte, 64<<10); ; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		for m := b[:n]; len(m) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(m))
			if size < head || size > len(m) {
				return nil, errors.Join(io.ErrUnexpectedEOF, fmt.Errorf("netlink: a message of %d bytes", size))
			}
			if binary.NativeEndian.Uint16(m[4:]) == unix.NLMSG_ERROR {
				if code := int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr:])); code != 0 {
					return nil, fmt.Errorf("netlink: command %d: %w", command, unix.Errno(-code))
				}
				return answer, nil
			}
			answer = append([]byte(nil), m[head:size]...)
			m = m[min(len(m), (size+3)&^3):]
		}
	}
}
