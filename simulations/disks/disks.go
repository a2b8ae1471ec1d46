// Package disks tests volumes as block devices: whole nodes in a guest whose
// kernel has ublk.
package disks
