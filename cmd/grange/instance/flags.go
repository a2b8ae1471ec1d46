package instance

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/instance"
)

// Flags are of a node that has instances.
type Flags struct {
	Dir              string `type:"path" help:"Folder of the instances' data; in --data when not given. A workload of another user has to be able to pass through the folders above." placeholder:"DIR"`
	Ports            ports  `help:"Ports that instances are given." default:"20000-29999"`
	ProvisionThreads *int   `help:"How many instances are started and stopped at once; 0: each as it comes, and who asks waits. A quarter of the processors when not given, 2 at least." placeholder:"N"`
	HydrationThreads *int   `help:"How many instances' data are brought in and put away at once; the same." placeholder:"N"`
	Max              int    `help:"How many instances this node may have." placeholder:"N"`
	Memory           share  `help:"How much of the host's memory may be in use, with what a new instance is expected to take." placeholder:"SIZE|N%"`
	Disk             share  `help:"How much of the disk may be in use, with what a new instance is expected to take." placeholder:"SIZE|N%"`
	Cgroup           string `type:"path" help:"A folder of control groups, version 2, that the node may make others in: each instance has one, which bounds its memory, and with which all that it has started ends." placeholder:"DIR"`
	Emulator         string `help:"How machines are run, as in qemu's -accel: kvm:tcg when not given, which is by KVM where there is one." placeholder:"NAME"`
}

// Validate refuses numbers below none.
func (f *Flags) Validate() error {
	for name, n := range map[string]*int{"provision-threads": f.ProvisionThreads, "hydration-threads": f.HydrationThreads, "max": &f.Max} {
		if n != nil && *n < 0 {
			return fmt.Errorf("--instance-%s: %d is less than none; give 0 or more", name, *n)
		}
	}
	return nil
}

// Config is how a node runs instances.
func (f *Flags) Config() node.Instances {
	return node.Instances{
		Dir: f.Dir, Cgroup: f.Cgroup, Emulator: f.Emulator, First: f.Ports.first, Last: f.Ports.last, Provisions: f.ProvisionThreads, Hydrations: f.HydrationThreads,
		Limits: instance.Limits{Instances: f.Max, Memory: instance.Share(f.Memory), Disk: instance.Share(f.Disk)},
	}
}

// ports are a range of them, written as 20000-29999.
type ports struct{ first, last int }

func (p *ports) UnmarshalText(b []byte) error {
	from, to, _ := strings.Cut(string(b), "-")
	first, err := strconv.ParseUint(from, 10, 16)
	last, also := strconv.ParseUint(to, 10, 16)
	if errors.Join(err, also) != nil || first == 0 || last < first {
		return fmt.Errorf("%q is not a range of ports; write it as 20000-29999", b)
	}
	*p = ports{int(first), int(last)}
	return nil
}

// share is a size, or a part of all that there is, written as 80%.
type share instance.Share

func (s *share) UnmarshalText(b []byte) error {
	if strings.HasSuffix(string(b), "%") {
		var part units.Part
		if err := part.UnmarshalText(b); err != nil {
			return err
		}
		*s = share{Part: float64(part)}
		return nil
	}
	var size units.Size
	if err := size.UnmarshalText(b); err != nil {
		return fmt.Errorf("%w, or 80%%", err)
	}
	*s = share{Bytes: int64(size)}
	return nil
}
