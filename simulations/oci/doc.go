// Package oci tests the door for container runtimes as its users meet it: containerd on the hosts of a farm, and real
// registries that their nodes are mirrors of.
package oci
