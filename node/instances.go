package node

import (
	"cmp"
	"context"
	"path/filepath"
	"runtime"

	"github.com/grangemesh/grange/node/instance"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/trust"
)

// Instances say how instances are run.
type Instances struct {
	// Dir has what they have; "" is a folder in the node's own.
	Dir string
	// First and Last are the ports that they are given.
	First, Last int
	// Provisions and Hydrations are how many steps of each kind are done at once; nil is a quarter of the processors, two at
	// least, and 0 has who asks wait until all is done.
	Provisions, Hydrations *int
	Limits                 instance.Limits
	// Cgroup is a folder of control groups (version 2) that each instance has one in; "" for none.
	Cgroup string
	// Emulator is how machines are run, as in qemu's -accel; "" is by KVM, and without where there is none.
	Emulator string
	// Lower is the command of a process that calls instance.Show, see there; none refuses instances that start before their
	// data are here.
	Lower []string
}

const (
	// firstPort and lastPort are where nothing else is, as a rule: above what services have, and below what Linux takes for
	// outgoing connections.
	firstPort, lastPort = 20_000, 29_999
	emulatorDefault     = "kvm:tcg"
	// stepsLeast is the least number of steps of each kind.
	stepsLeast = 2
)

func (c Instances) emulator() string { return cmp.Or(c.Emulator, emulatorDefault) }

func steps(n *int) int {
	if n == nil {
		return max(runtime.NumCPU()/4, stepsLeast)
	}
	return *n
}

func (n *Node) openInstances(context.Context) (err error) {
	c := n.cfg.Instances
	n.Instances, err = instance.New(instance.Config{
		Dir: cmp.Or(c.Dir, filepath.Join(n.cfg.Dir, "instances")), First: cmp.Or(c.First, firstPort), Last: cmp.Or(c.Last, lastPort),
		Provisions: steps(c.Provisions), Hydrations: steps(c.Hydrations), Limits: c.Limits, Cgroup: c.Cgroup,
		Self: n.identity.Public(), Farm: n.Farm(), Who: func(k trust.PublicKey) string { return n.Membership.Who(k).String() },
		Volumes: n.Volumes, Emulator: c.emulator(), Lower: c.Lower, Registry: records.OfInstances{Names: n.Names}, Library: n.Images, Operations: n.Operations, Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}
