// Package csi tests the driver for Kubernetes as Kubernetes uses it: two nodes of a farm, each with its driver, in a guest
// whose kernel has ublk, ext4 and xfs, and lets disks grow that are in use.
package csi
